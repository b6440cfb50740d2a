// Progress: the part of the page that shows it is asked for again, and told apart from before.
const place = document.getElementById("work");

if (place) {
  const runs = place.dataset.show === "alive"; // beside the list, those at work alone
  const live = new URL("../live.json", import.meta.url);
  const lost = document.createElement("p");
  lost.className = "error";
  lost.setAttribute("role", "status");
  place.before(lost);
  let shown = null;

  const look = async () => {
    if (!document.hidden) {
      try {
        const response = await fetch(live);
        if (!response.ok) throw new Error(response.statusText);
        const found = await response.json();
        const html = runs ? found.alive : found.html;
        if (html !== shown) {
          place.innerHTML = html; // escaped by the server's template
          shown = html;
        }
        document.getElementById("changed").hidden = found.store === place.dataset.store;
        lost.textContent = "";
      } catch {
        lost.textContent = "The explorer does not answer, so what stands here may be old. It is asked again and again; if it was started anew, open the address that it shows.";
      }
    }
    setTimeout(look, 2000);
  };
  setTimeout(look, 2000);
}
