// The ways for a clip to get here: chosen, dropped, recorded, or one of the examples.

import { byId, clock } from "./dom.js";
import { obstacle, Recorder } from "./recorder.js";
import { address } from "./service.js";

const EXAMPLES = ["confbridge-begin-glorious-a", "unidentified-no-callback", "vm-mismatch", "vm-tmpexists"];

export class Intake {
  #recorder = null;
  #recordings = 0;
  #dragged = 0;

  /** add(files, made): they are here; made here, or from the user's disk. */
  constructor(add) {
    this.add = add;
    byId("files").addEventListener("change", (event) => {
      add([...event.target.files], false);
      event.target.value = ""; // so that the same file can be chosen again
    });
    byId("record").addEventListener("click", () => this.#record());
    byId("examples").addEventListener("click", () => this.#examples());
    this.#listenToDrops();
  }

  async #examples() {
    byId("examples").disabled = true;
    try {
      const files = await Promise.all(EXAMPLES.map(fetchExample));
      byId("credit").hidden = false;
      this.add(files, true);
    } catch {
      problem("The examples cannot be loaded: the service cannot be reached.");
    }
    byId("examples").disabled = false;
  }

  async #record() {
    if (this.#recorder) {
      this.#recorder.stop();
      return;
    }
    problem(obstacle());
    if (obstacle()) return;
    const recorder = new Recorder(
      (level, seconds) => {
        byId("level").value = Math.sqrt(level);
        byId("recorded").textContent = clock(seconds, 1);
      },
      (blob) => this.#recorded(blob),
    );
    this.#recorder = recorder;
    try {
      await recorder.start();
      this.#showRecording(true);
    } catch (error) {
      this.#recorder = null;
      problem(error.message);
    }
  }

  #recorded(blob) {
    this.#recorder = null;
    this.#showRecording(false);
    if (!blob) return problem("Nothing was recorded: the microphone gave no sound.");
    this.#recordings++;
    this.add([new File([blob], `recording-${this.#recordings}.wav`, { type: blob.type })], true);
  }

  #showRecording(on) {
    byId("recording").hidden = !on;
    byId("recorded").textContent = "";
    byId("record").textContent = on ? "Stop" : "Record";
    byId("record").classList.toggle("live", on);
  }

  #listenToDrops() {
    const held = (event) => event.dataTransfer?.types.includes("Files");
    const show = () => (byId("drop").hidden = this.#dragged <= 0);
    addEventListener("dragenter", (event) => {
      if (held(event)) this.#dragged++;
      show();
    });
    addEventListener("dragleave", (event) => {
      if (held(event)) this.#dragged--;
      show();
    });
    addEventListener("dragover", (event) => held(event) && event.preventDefault());
    addEventListener("drop", (event) => {
      if (!held(event)) return;
      event.preventDefault();
      this.#dragged = 0;
      show();
      this.add([...event.dataTransfer.files], false);
    });
  }
}

async function fetchExample(name) {
  const response = await fetch(address(`playground/${name}.flac`));
  if (!response.ok) throw new Error(response.statusText);
  return new File([await response.blob()], `${name}.flac`, { type: "audio/flac" });
}

function problem(text) {
  byId("intake-problem").textContent = text;
  byId("intake-problem").hidden = !text;
}
