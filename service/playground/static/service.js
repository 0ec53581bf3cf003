// The service: its models, its analyses, and its refusals in words.

const KEY = "speech-ssl-key";

/** Kept for as long as this tab is open, and sent to this service alone. */
export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

export const address = (path) => new URL(path, document.baseURI).href;

/** status: of HTTP, 0 without an answer. retryAfter: seconds, null where the service does not say. */
export class Refusal extends Error {
  constructor(message, status = 0, retryAfter = null) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/** What it serves: a list of {id, layers, width, heads: [{name, task, labels}]}. */
export async function models() {
  return (await ask("v1/models")).json.data;
}

/** Of the API, as OpenAPI 3.1. */
export async function description() {
  return (await ask("openapi.json")).json;
}

/** {json, headers} of one clip. options: [name, value] pairs, as optionsOf gives them. */
export function analyse(file, name, options, signal) {
  const form = new FormData();
  for (const [option, value] of options) form.append(option, value);
  form.append("file", file, name);
  return ask("v1/audio/analyses", { method: "POST", body: form, signal });
}

/**
 * All that a model can, in one request. choice: {several, layer, speechHead, soundsHead, threshold}; what
 * the service does by itself is left out.
 */
export function optionsOf(model, choice) {
  const speech = headsOf(model, "transcription");
  const sounds = headsOf(model, "classification");
  const tasks = ["embedding"];
  if (speech.length) tasks.push("transcription");
  if (sounds.length) tasks.push("classification");
  const options = [["tasks", tasks.join(",")]];
  if (choice.several) options.push(["model", model.id]);
  if (choice.layer !== model.layers) options.push(["layer", String(choice.layer)]);
  if (speech.length > 1) options.push(["speech_head", choice.speechHead]);
  if (sounds.length > 1) options.push(["sounds_head", choice.soundsHead]);
  if (sounds.length && choice.threshold !== 0.5) options.push(["threshold", String(choice.threshold)]);
  return options;
}

export const headsOf = (model, task) => model.heads.filter((head) => head.task === task);

async function ask(path, init = {}) {
  const headers = key.get() ? { Authorization: `Bearer ${key.get()}` } : {};
  try {
    const response = await fetch(address(path), { ...init, headers, cache: "no-store" });
    if (!response.ok) throw await refusal(response);
    return { json: await response.json(), headers: response.headers };
  } catch (error) {
    if (error instanceof Refusal || error.name === "AbortError") throw error;
    throw new Refusal("There is no answer: the service cannot be reached, or it broke off.");
  }
}

async function refusal(response) {
  const after = Number.parseFloat(response.headers.get("Retry-After"));
  let message = `The service answered ${response.status} ${response.statusText}`.trim() + ".";
  try {
    message = sentence((await response.json()).error.message);
  } catch {
    // Not the service: a proxy before it.
  }
  return new Refusal(message, response.status, Number.isFinite(after) ? after : null);
}

function sentence(text) {
  const begun = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(begun) ? begun : `${begun}.`;
}
