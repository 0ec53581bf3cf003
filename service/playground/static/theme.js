// Runs before the page is drawn, so that a chosen theme does not flash. Without a choice the system decides.

(() => {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const chosen = () => root.dataset.theme ?? (system.matches ? "dark" : "light");
  const stored = () => {
    try {
      return localStorage.getItem("speech-ssl-theme");
    } catch {
      return null; // the browser keeps nothing
    }
  };

  if (["dark", "light"].includes(stored())) root.dataset.theme = stored();

  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const tell = () => {
      button.textContent = chosen() === "dark" ? "Light" : "Dark";
      button.setAttribute("aria-label", `${button.textContent} theme`);
      document.dispatchEvent(new CustomEvent("themechange", { detail: chosen() }));
    };
    button.addEventListener("click", () => {
      root.dataset.theme = chosen() === "dark" ? "light" : "dark";
      try {
        localStorage.setItem("speech-ssl-theme", root.dataset.theme);
      } catch {
        // Then it holds for this page only.
      }
      tell();
    });
    system.addEventListener("change", tell);
    tell();
  });
})();
