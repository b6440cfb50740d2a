from __future__ import annotations
from dataclasses import dataclass
import numpy as np
from chexgenbench.statistics.arrays import FloatArray, two_sides
from chexgenbench.statistics.sampling import *
from chexgenbench.statistics.sampling import estimate, units_of

def _factor(c, ):
    n, d = c.shape
    if n <= d:
        return c/np.sqrt(n-1)
    s = c.T@c/(n-1)
    try:
        return np.linalg.cholesky(s).T
    except np.linalg.LinAlgError:
        w, q = np.linalg.eigh(s)
        keep = w > w[-1]*1e-14
        return (q[:, keep]*np.sqrt(w[keep])).T

def parts(real, fake, probes=None, units=None, design=None):
    off = real.mean(0)
    x = real-off; y = fake-off
    mx, my = x.mean(0), y.mean(0)
    x = x-mx; y = y-my
    n, d = x.shape; m = len(y)
    F1, F2 = _factor(x), _factor(y)
    M = F1@F2.T
    if M.shape[0]==M.shape[1]==d:
        lam, u = np.linalg.eigh(M@M.T)
        s = np.sqrt(np.clip(lam,0,None))
        keep = s > s[-1]*1e-7
        s = s[keep]; u=u[:,keep]
        P2 = (u.T@F1)/np.sqrt(s)[:,None]
        P1 = ((u.T@M)@F2)/ (s**1.5)[:,None]
    else:
        u, s, vt = np.linalg.svd(M, full_matrices=False)
        keep = s > s[0]*1e-7
        s=s[keep]; u=u[:,keep]; vt=vt[keep]
        P1 = (vt@F2)/np.sqrt(s)[:,None]
        P2 = (u.T@F1)/np.sqrt(s)[:,None]
    delta = mx-my
    t1 = (x*x).sum()/(n-1); t2=(y*y).sum()/(m-1)
    value = delta@delta + t1+t2-2*s.sum()
    xt = x@P1.T; yt = y@P2.T
    a = 2*x@delta/n + ((x*x).sum(1)-(xt*xt).sum(1))/(n-1)
    b = -2*y@delta/m + ((y*y).sum(1)-(yt*yt).sum(1))/(m-1)
    a -= a.mean(); b-=b.mean()
    R = probes or int(np.clip(2048//d,2,64))
    ex, ey = units.signs(R)
    pa = np.zeros((n,R)); pb=np.zeros((m,R))
    W = s[:,None]+s[None,:]
    for r in range(R):
        e1 = ex[:,r]; e2=ey[:,r]
        e1=e1-0; 
        dE = ((xt*e1[:,None]).T@xt - np.diag(s)*e1.sum())/(n-1) - ((yt*e2[:,None]).T@yt-np.diag(s)*e2.sum())/(m-1)
        me = x.T@e1/n - y.T@e2/m
        G = dE/W
        tg = np.trace(G*np.diag(s)) if False else (np.diag(G)*s).sum()
        pa[:,r] = (((xt@G)*xt).sum(1)-tg)/(n-1) + 2*x@me/n
        pb[:,r] = -(((yt@G)*yt).sum(1)-tg)/(m-1) - 2*y@me/m
    # bias
    bias = 0.0
    x2 = xt*xt; y2=yt*yt
    e = (x2.T@x2 - n*np.outer(s,s)*0)/(n-1)**2 + (y2.T@y2)/(m-1)**2
    e -= np.diag(s*s)*(1/n+1/m)
    if design=='paired':
        xy = xt*yt
        # sum_u (xx'-D)(yy'-D)
        e -= 2*(xy.T@xy)/(n-1)/(m-1) - 2*np.diag(s*s)/n
        bm = ((x/n-y/m)**2).sum()
    else:
        bm = (x*x).sum()/n**2 + (y*y).sum()/m**2
    bias = 0.5*(e/W).sum() + bm
    return value, Influence(units,a,b,pa,pb), bias
