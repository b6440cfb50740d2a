"""Words of chest radiograph reports: what names a finding, and what denies or doubts it.

A phrase is a list of words. ``a/b`` is either word, ``word*`` any word that begins so, ``word?`` a
word that may be missing, and ``~`` up to `GAP` words of the same statement, such as "heart size *is
mildly* enlarged". What each finding covers follows the published labellers (Irvin et al. 2019,
https://arxiv.org/abs/1901.07031; Peng et al. 2018, https://arxiv.org/abs/1712.05898); the phrases
were written for this project.
"""

from __future__ import annotations

from collections.abc import Mapping

GAP = 8

OTHER = "other"
"""What is abnormal and none of the 14 findings: it has no label, and excludes No Finding."""

_HEART = "heart/cardiac/cardiopericardial"
_NORMAL = "normal/unremarkable/normally"
_LARGE = "enlarged/enlargement/increased/prominent/prominence/generous/large"
_MEDIASTINUM = "mediastinum/mediastinal/cardiomediastinal/cardiomediastinum/cardio"
_OUTLINE = "silhouette/silhouettes/contour/contours/size/shadow/outline"

NAMED: Mapping[str, tuple[str, ...]] = {
    "Atelectasis": (
        "atelecta*",
        "lobar/lobe/lung/segmental collapse/collapsed",
        "collapsed left/right? lung/lobe",
        "collapse of ~ lung/lobe/lobes",
    ),
    "Cardiomegaly": (
        "cardiomegal*",
        f"{_HEART} ~ enlarged/enlargement/large",
        f"{_HEART} ~ increased in size",
        f"{_HEART} is/appears/remains/looks ~ prominent/generous",
        "cardiothoracic ratio ~ enlarged/increased/elevated",
        f"{_HEART} {_OUTLINE} ~ {_LARGE}",
        f"{_LARGE} of? the? {_HEART} {_OUTLINE}?",
        "borderline heart/cardiac size",
        f"{_HEART} ~ borderline",
    ),
    "Consolidation": ("consolidat*",),
    "Edema": (
        "edema*",
        "oedema*",
        "vascular/pulmonary/venous/perihilar/bronchovascular/pulmonic congestion",
        "pulmonary vascular/venous congestion",
        "congestive failure/changes/change",
        "congestive heart failure",
        "heart/cardiac failure",
        "chf",
        "fluid overload",
        "kerley b? line/lines",
    ),
    "Enlarged Cardiomediastinum": (
        "mediastinal/cardiomediastinal widening/enlargement",
        f"{_MEDIASTINUM} ~ widened/wide/enlarged/prominent",
        "widening of the? superior/upper? mediastinum/mediastinal/cardiomediastinal",
        "enlargement of the? superior/upper? mediastinum/mediastinal/cardiomediastinal",
        "widened/enlarged/prominent superior/upper? mediastinum",
        f"widened/enlarged/prominent superior/upper? mediastinal/cardiomediastinal {_OUTLINE}",
    ),
    "Fracture": ("fracture/fractures/fractured",),
    "Lung Lesion": (
        "nodule/nodules",
        "nodular/nodule like? density/densities/opacity/opacities/opacification/lesion/lesions",
        "mass/masses",
        "lung/pulmonary/cavitary/parenchymal/nodular/suspicious/focal lesion/lesions",
        "cavitary lung? mass/lesion/lesions",
        "neoplasm*",
        "neoplastic",
        "malignan*",
        "carcinoma*",
        "tumor*",
        "tumour*",
        "lung cancer",
        "metastas*",
        "metastatic",
        "pulmonary/lung metastases",
    ),
    "Lung Opacity": (
        "opacit*",
        "opacif*",
        "infiltrat*",
        "airspace/alveolar disease/process/filling/changes",
        "air space disease/process/filling/changes",
        "density/densities",
        "haziness",
        "ground glass",
        "shadowing",
        "stranding",
        "increased/prominent/coarse/accentuated interstitial/bronchovascular/lung? markings",
        "interstitial/bronchovascular/lung markings ~ increased/prominent/coarse/coarsened",
        "interstitial thickening/prominence/pattern/change/changes/disease",
        "interstitial lung disease/changes/pattern",
        "reticula*",
        "reticulonodular",
        "scar/scars/scarring",
    ),
    "Pleural Effusion": (
        "effusion*",
        "pleural fluid",
        "fluid in/within the? pleural/left/right/minor/major? space/fissure",
        "hydropneumothora*",
        "hemothora*",
        "haemothora*",
        "hydrothora*",
        "hemopneumothora*",
    ),
    "Pleural Other": (
        "pleural/pleuroparenchymal/pleuro apical/based? parenchymal? thickening/scar/scarring",
        "pleural/pleuroparenchymal plaque/plaques/calcification/calcifications/fibrosis",
        "calcified/noncalcified pleural plaque/plaques",
        "thickening/scarring/calcification of the? left/right? pleura",
        "apical capping/cap",
        "fibrothora*",
    ),
    "Pneumonia": (
        "pneumonia*",
        "pneumonic",
        "bronchopneumonia*",
        "infection/infections",
        "infectious",
    ),
    "Pneumothorax": (
        "pneumothora*",
        "hydropneumothora*",
        "hemopneumothora*",
        "ptx",
    ),
    "Support Devices": (
        "pacemaker/pacemakers",
        "pacer/pacers/icd/aicd/picc",
        "defibrillator*",
        "pacing/icd/pacemaker/defibrillator/cardiac/ventricular/atrial lead/leads/wire/wires",
        "monitor/monitoring lead/leads/wires",
        "catheter*",
        "port a cath*",
        "portacath*",
        "portocath*",
        "mediport*",
        "chest/infusion/venous/subclavian/jugular port",
        "port tip",
        "picc line",
        "central/venous/jugular/subclavian/arterial/support/dialysis venous? line/lines",
        "lines and? tubes",
        "tube/tubes",
        "tracheostomy",
        "cannula*",
        "drain/drains",
        "swan ganz",
        "prosthetic/mechanical/artificial/bioprosthetic aortic/mitral/cardiac/heart? valve/valves",
        "valve replacement/prosthesis/prostheses",
        "stent/stents",
        "hardware",
        "screw/screws/rod/rods/coils",
        "arthroplast*",
        "prosthesis/prostheses",
        "sternotomy/sternal wire/wires",
        "surgical/vascular/mediastinal/hilar/skin clip/clips",
        "vagal/vagus nerve/nerves stimulator",
        "stimulator*",
        "device/devices",
        "implanted/loop recorder",
        "support equipment/apparatus",
    ),
    OTHER: (
        "soft tissue density/densities",
        "radiopaque/curvilinear/tubular/circular/pleural/metallic density/densities",
        "pleural based density/densities",
        "emphysem*",
        "copd",
        "obstructive pulmonary/lung disease",
        "hyperinflat*",
        "hyperexpan*",
        "hyperlucen*",
        "bulla/bullae/bullous/bleb/blebs",
        "bronchiectasis",
        "bronchitis",
        "bronchiolitis",
        "cuffing",
        "bronchial/peribronchial wall? thickening",
        "fibrosis",
        "fibrotic",
        "sarcoid*",
        "tuberculosis",
        "granuloma*",
        "calcif*",
        "atherosclero*",
        "aneurysm*",
        "tortuous",
        "tortuosity",
        "ectasia",
        "ectatic",
        "hernia/hernias",
        "eventration",
        "elevated/elevation of? the? left/right? hemidiaphragm/hemidiaphragms/diaphragm",
        "hemidiaphragm/diaphragm ~ elevated",
        "blunting/blunted",
        "adenopathy",
        "lymphadenopathy",
        "scoliosis",
        "dextroscoliosis",
        "levoscoliosis",
        "kyphosis",
        "kyphoscoliosis",
        "degenerative",
        "osteophyt*",
        "spondyl*",
        "osteopeni*",
        "osteoporo*",
        "arthritic",
        "arthritis",
        "arthropathy",
        "deformity/deformities",
        "sclerotic",
        "dislocation/dislocated",
        "pneumomediastinum",
        "pneumoperitoneum",
        "intraperitoneal/subdiaphragmatic/free air",
        "aspiration",
        "contusion/contusions",
        "hemorrhage",
        "pulmonary/arterial hypertension",
        "pericardial effusion/effusions",
        "pneumonectomy/lobectomy/mastectomy",
    ),
}
"""Finding to phrases that name it."""

DENIED: Mapping[str, tuple[str, ...]] = {
    "Cardiomegaly": (
        f"{_HEART} ~ {_NORMAL}",
        f"{_HEART} ~ within limits",
        f"{_NORMAL} appearing? sized? {_HEART} {_OUTLINE}?",
        f"normal size/sized of? the? {_HEART} {_OUTLINE}?",
        f"cardiomediastinal/cardio {_OUTLINE} ~ {_NORMAL}",
        f"cardio mediastinal {_OUTLINE} ~ {_NORMAL}",
        "cardiomediastinal/cardio ~ within limits",
        f"{_NORMAL} appearing? cardiomediastinal {_OUTLINE}?",
    ),
    "Enlarged Cardiomediastinum": (
        f"{_MEDIASTINUM} ~ {_NORMAL}",
        f"{_MEDIASTINUM} ~ within limits",
        f"{_NORMAL} appearing? {_MEDIASTINUM}",
        f"{_NORMAL} {_HEART} size? and {_MEDIASTINUM}",
    ),
    "Fracture": (
        "bony/osseous/bones/ribs/skeletal/thorax/skeleton ~ intact",
        "intact bony/osseous structures/thorax",
    ),
}
"""Finding to phrases that say that it is not there."""

NO_MENTION: tuple[str, ...] = (
    "pericardial effusion/effusions",
    "joint effusion/effusions",
    "mass effect",
    "body mass",
    "air bronchogram/bronchograms",
    "congestion of the? nose/sinus",
    "tube/tubes feeding",
    "pleural line",
    "soft/subcutaneous tissue edema",
    "subcutaneous edema",
    "soft tissue mass/masses",
    "healed/prior/old granulomatous infection",
    "prior/previous/old/remote granulomatous infection/disease",
    "breast prosthesis/prostheses",
    "test tube",
    "infiltrative/infiltrating",
    "vertebral collapse",
    "bone/bony/osseous/mineral/breast/metallic/metal/fat/fluid/contrast/barium density/densities",
    "calcific/calcified/calcium density/densities",
    "normal/decreased/reduced density/densities",
    "soft tissue density/densities",
    "radiopaque/curvilinear/tubular/circular/pleural density/densities",
    "pleural based density/densities",
    "density/densities of the? bone/bones/breast/breasts",
    "heart/cardiac rate/rhythm/surgery/catheterization",
    "heart disease",
    "congenital heart",
    "eustachian tube",
    "scar/scarring/infection of? the? skin",
)
"""Phrases with the words of a finding that name none."""

NEGATED_BEFORE: tuple[str, ...] = (
    "no", "no-longer", "without", "absent", "absence of", "negative for", "free of", "free from",
    "clear of", "clear from", "clear without", "neither", "nor", "never", "denies",
    "lack/lacks of?",
    "fails/failed/failure to show/demonstrate/reveal", "rules out", "excludes",
    "resolution of", "resolved", "clearance of", "clearing of", "disappearance of",
    "removal of", "removed", "rather than", "instead of",
)  # fmt: skip
"""What denies the findings that follow."""

NOT_BEFORE: tuple[str, ...] = ("not", "cannot see")
"""The same for the next few words alone."""

NEXT_BEFORE: tuple[str, ...] = ("non",)
"""The same for the next word alone: a non-displaced fracture is one."""

_GONE = "resolved/cleared/disappeared/removed/discontinued"
_SEEN = (
    "seen/identified/present/visualized/visualised/visible/demonstrated/evident/appreciated/noted/"
    "detected/observed/apparent/shown/found"
)
_GOING = "resolution/clearing/clearance/disappearance/removal"

NEGATED_AFTER: tuple[str, ...] = (
    f"not/no-longer ~ {_SEEN}",
    f"cannot be {_SEEN}",
    "not ~ suspected",
    "does/do/did not persist/exist",
    "does/do/did not appear on/in/.",
    "is/are/was/were absent/excluded/negative",
    f"has/have/had been? completely/fully? {_GONE}",
    f"been/was/were completely/fully/subsequently? {_GONE}",
    "been/was/were completely/fully/subsequently? excluded",
    "ruled out",
    "resolved/removed",
    "none/nil/absent/negative/no ./,",
    f"none {_SEEN}",
    "no evidence/sign/signs .",
)
"""What denies the findings before it."""

NEUTRAL: tuple[str, ...] = (
    "no/without significant/interval/appreciable/substantial/definite? interval? change/changes",
    "no/without significant/interval/further/appreciable? increase/decrease/worsening/progression",
    "no/without significant/interval/further/appreciable? improvement/enlargement in/of",
    "no/not larger/smaller/greater/better/worse/different",
    "no/without doubt",
    "not only",
    "not significantly/appreciably/substantially? changed/changing/improved/increased/decreased",
    # What is not gone is there.
    f"no/not/without evidence/sign/signs? of/for? complete/significant? interval? {_GOING} of?",
    f"no/without significant/complete/full/definite? interval? {_GOING} of?",
    f"no/not evidence/indication/sign/proof that ~ {_GONE}",
    f"lack/absence/failure of/in complete/full/significant? interval? {_GOING} of?",
    f"not/never/non yet? been? yet? fully/completely/entirely? {_GONE}",
    f"neither ~ {_GONE}",
    f"yet to be fully/completely/entirely? {_GONE}",
    "not/never free/clear/negative/without of/from/for?",
    # Nor is what is only partly gone.
    "partial/incomplete/near/some/continued/slight/mild/minimal/early/gradual/ongoing/further "
    f"complete/total? interval? {_GOING} of?",
    "partially/partly/incompletely/nearly/almost/largely/mostly completely/entirely/totally? "
    f"{_GONE}",
    "not well/fully/completely/clearly/adequately/optimally",
)
"""Phrases with the words of a denial that deny nothing."""

ELSEWHERE: tuple[str, ...] = (
    f"not ~ {_SEEN} on/in/at the? prior/previous/previously/earlier/old/last/comparison",
    f"not ~ {_SEEN} previously/before/earlier",
    "not previously/before",
)
"""What says that a finding was not there before: it denies nothing."""

_SURELY = "completely/entirely/fully/definitively/definitely/confidently/reliably"

DOUBTED_FIRST: tuple[str, ...] = (
    f"cannot be? {_SURELY}? exclude",
    f"cannot be? {_SURELY}? rule out",
    f"could/does/do/did not {_SURELY}? exclude",
    f"could/does/do/did not {_SURELY}? rule out",
    "not/no exclude/excluded",
    "no/not evidence to exclude",
    "no/not evidence to rule out",
    "difficult/hard/unable/impossible to exclude",
    "difficult/hard/unable/impossible to rule out",
    "not possible/able to exclude",
    "not possible/able to rule out",
)
"""Doubts with the words of a denial: they are looked for before denials."""

DOUBTED_BEFORE: tuple[str, ...] = (
    "possible", "possibly", "possibility of", "probable", "probably", "likely", "unlikely",
    "perhaps", "may", "might", "could", "can represent", "would represent", "suspect*", "suspicio*",
    "questionable", "questionably", "question of?", "query", "equivocal", "indeterminate for",
    "suggest*", "concern*", "worrisome", "consider*", "favor*", "favour*", "presum*", "apparent",
    "potential*", "differential*", "doubtful", "whether", "borderline", "raise/raises/raising",
    "versus", "vs", "either",
)  # fmt: skip
"""What doubts the findings that follow."""

DOUBTED_AFTER: tuple[str, ...] = (
    f"cannot {_SURELY}? be {_SURELY}? excluded",
    f"could not {_SURELY}? be {_SURELY}? excluded",
    f"cannot be {_SURELY}? ruled out",
    f"could not be {_SURELY}? ruled out",
    f"not well/clearly/definitely/adequately/fully/optimally {_SEEN}",
    "not well/clearly/definitely/adequately/fully/optimally evaluated/assessed",
    f"not ~ {_SEEN} on/in the? lateral/frontal/pa/ap",
    f"not {_SURELY}? excluded",
    f"not been? {_SURELY}? ruled out",
    f"not be? been? {_SURELY}? excluded/ruled",
    "difficult/hard/impossible to exclude",
    "is/are/was/were also? possible/probable/likely/unlikely/suspected/questioned/questionable",
    "is/are/was/were doubtful",
    "is/are/was/were also? considered",
    "in question .",
    "possible/probable/likely/unlikely/questionable/equivocal/suspected/uncertain ./,",
    "should/must/may/might/could be considered/present/excluded",
    "in the differential*",
    "remain/remains possible/likely/probable",
    "felt less/more? likely/unlikely",
)
"""What doubts the findings before it."""

DOUBTED_WITHIN: tuple[str, ...] = (
    "upper limits", "upper limit", "upper normal", "top normal", "top limits", "borderline",
    "near top", "upper range",
)  # fmt: skip
"""What doubts a statement on the size of the heart, also one that would be normal without it."""

IGNORED_BEFORE: tuple[str, ...] = (
    "history of", "hx of", "h o", "if", "evaluate/assess/check/look/looking/screen/screening for",
    "evaluation/assessment/surveillance for", "evaluate/assess/exclude/confirm/document/ensure",
    "indication/indications/history/comparison/comparisons/technique/exam/examination :",
    "information/question/request :", "reason for ~ :",
    "rule out", "ruling out", "recommend*", "correlat*", "follow up", "followup", "risk of",
    "indication", "clinical concern for", "exclusion of", "treated for", "treatment of",
    "obscure/obscures/obscured/obscuring",
)  # fmt: skip
"""What makes the findings that follow no statement on this image: history, questions, advice."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


BREAKS = _words("""
    but however although though except excepting exception apart aside besides yet whereas which
    because nevertheless otherwise : ( )
""")
"""Words that end a statement: what was denied or doubted before holds no longer."""

VERBS = _words("""
    is are was were has have had appears appear remains remain shows show demonstrates demonstrate
    seems seem
""")

STARTS = _words("""
    small mild mildly minimal minimally moderate moderately tiny trace severe extensive stable
    unchanged persistent there the heart cardiac cardiomediastinal lungs interval increased
    increasing decreased improved new left right bilateral bibasilar biapical low patchy streaky a
    an again old chronic borderline prominent multiple scattered tortuous calcified degenerative
    aorta bony osseous overlying some subtle linear subsegmental this these normal clear enlarged
    worsening cardiomegaly
""")
"""Words that begin a new statement after a comma, ``and`` or ``with``."""

PROMINENT = _words("prominent prominence generous")
"""Words for a size that need not be too large."""

GONE = _words("resolved cleared disappeared removed discontinued")
"""The last words of what says that a finding was there and is no longer."""

STAYS = _words("remains remain persists persist")
"""Verbs that say of the finding before them that it is there."""

LINKS = _words(", and but which that now since subsequently")
"""Words between a subject's first verb and its second."""
