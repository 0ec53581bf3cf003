// Elements and texts. Names of files and answers of the service become text nodes, never markup.

export const byId = (id) => document.getElementById(id);

/** An element with properties (or attributes, where there is no such property) and children. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** For people: "3.30 s", "2:05.1". */
export function clock(seconds, digits = 2) {
  if (seconds < 60) return `${seconds.toFixed(digits)} s`;
  const tenths = Math.round(seconds * 10);
  const rest = ((tenths % 600) / 10).toFixed(1).padStart(4, "0");
  return `${Math.floor(tenths / 600)}:${rest}`;
}

export const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;

/** With a minus sign and not a hyphen. */
export const signed = (number, digits) => number.toFixed(digits).replace("-", "−");

/** For people, to three digits of a probability. */
export const percent = (score) => `${(score * 100).toFixed(score < 0.1 ? 1 : 0)} %`;

/** A button that puts a text on the clipboard and says so. */
export function copyButton(label, text) {
  const button = make("button", { type: "button", className: "quiet", textContent: label });
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text());
      button.textContent = "Copied";
    } catch {
      button.textContent = "The browser does not allow it";
    }
    setTimeout(() => (button.textContent = label), 1500);
  });
  return button;
}
