// What is asked of the model: which, which layer, which heads, and from which probability on.

import { byId, make } from "./dom.js";
import { headsOf, optionsOf } from "./service.js";

export class Options {
  #models = [];

  constructor(onchange) {
    for (const id of ["model", "layer", "speech-head", "sounds-head", "threshold"]) {
      byId(id).addEventListener("change", () => {
        if (id === "model") {
          byId("layer").replaceChildren(); // the last of the new one
          this.#describe();
        }
        onchange();
      });
    }
    this.#closeByItself();
  }

  #closeByItself() {
    const details = byId("options");
    document.addEventListener("pointerdown", (event) => details.contains(event.target) || (details.open = false));
    details.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      details.open = false;
      details.firstElementChild.focus();
    });
  }

  get ready() {
    return this.#models.length > 0;
  }

  /** The models there are; what was chosen stays chosen, where it still exists. */
  offer(models) {
    this.#models = models;
    fill(byId("model"), models.map(({ id }) => [id, id]));
    byId("model").disabled = models.length < 2;
    byId("options").hidden = byId("model").parentElement.hidden = false;
    this.#describe();
  }

  /** {options: pairs for the service, space: whose vectors can be compared}. */
  request() {
    const model = this.#model();
    const layer = Number(byId("layer").value);
    const percent = byId("threshold").valueAsNumber;
    const options = optionsOf(model, {
      several: this.#models.length > 1,
      layer,
      speechHead: byId("speech-head").value,
      soundsHead: byId("sounds-head").value,
      threshold: percent >= 1 && percent <= 100 ? percent / 100 : 0.5,
    });
    return { options, space: `${model.id} ${layer}` };
  }

  #model() {
    return this.#models.find(({ id }) => id === byId("model").value);
  }

  #describe() {
    const model = this.#model();
    const layers = Array.from({ length: model.layers + 1 }, (_, i) => model.layers - i);
    fill(byId("layer"), layers.map((layer) => [layer, layerName(layer, model.layers)]));
    for (const [id, task] of [["speech-head", "transcription"], ["sounds-head", "classification"]]) {
      const heads = headsOf(model, task);
      fill(byId(id), heads.map(({ name }) => [name, name]));
      byId(id).hidden = document.querySelector(`label[for=${id}]`).hidden = heads.length < 2;
    }
    const classifies = headsOf(model, "classification").length > 0;
    byId("threshold").parentElement.hidden = document.querySelector("label[for=threshold]").hidden = !classifies;
    const can = abilities(model);
    byId("abilities").textContent = [...can.map(([verb]) => verb), `vectors of ${model.width}`].join(", ");
    byId("promise").textContent = promise(can.map(([, answer]) => answer));
  }
}

/** [verb, what it answers] of each task that there is a head for. */
function abilities(model) {
  const tasks = {
    transcription: ["transcribes", "what was said, word by word"],
    classification: ["classifies", "what was heard and when"],
  };
  return Object.entries(tasks).flatMap(([task, ability]) => (headsOf(model, task).length ? [ability] : []));
}

function promise(answers) {
  if (!answers.length) {
    return "Give it recordings, and see which sound alike. This model has no heads to transcribe or classify with.";
  }
  const all = [...answers, "and which of them sound alike"].join(", ");
  return `Give it recordings. One pass through the model tells ${all}.`;
}

function layerName(layer, last) {
  if (layer === last) return `${layer}, the last`;
  return layer ? String(layer) : "0, before the first block";
}

function fill(select, choices) {
  const { value } = select;
  select.replaceChildren(...choices.map(([id, text]) => make("option", { value: id, textContent: text })));
  if (choices.some(([id]) => String(id) === value)) select.value = value;
}
