// Progress: the part of the page that shows it is asked for again, and told apart from before.
const place = document.getElementById("work");

if (place) {
  const runs = location.pathname === "/" && place.dataset.store !== "";
  let shown = null;

  const look = async () => {
    if (!document.hidden) {
      try {
        const response = await fetch("/live.json");
        if (!response.ok) return; // the explorer was started anew: this page has no part in it
        const found = await response.json();
        const html = runs ? found.alive : found.html;
        if (html !== shown) {
          place.innerHTML = html; // escaped by the server's template
          shown = html;
        }
        document.getElementById("changed").hidden = found.store === place.dataset.store;
      } catch {
        return; // the explorer has ended
      }
    }
    setTimeout(look, 2000);
  };
  setTimeout(look, 2000);
}
