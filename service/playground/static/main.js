// The page: what its user does, and what changes where.

import { Answers, showState } from "./answers.js";
import { Player } from "./audio.js";
import { Clip, Queue } from "./clips.js";
import { byId, clock, copyButton, signed } from "./dom.js";
import { Intake } from "./intake.js";
import { Options } from "./options.js";
import { Plot } from "./plot.js";
import { key, models, Refusal } from "./service.js";
import { Shelf, told } from "./shelf.js";
import { curl, python } from "./snippets.js";

const clips = [];
let selected = null;
let saved = ""; // address of the selected file, for downloads
let reading = Promise.resolve(); // one file is decoded at a time

const player = new Player();
const plot = new Plot(player);
const answers = new Answers(player, select);
const shelf = new Shelf(select, remove);
const options = new Options(() => selected && showClip());
const queue = new Queue(() => options.request(), changed, askForKey);
new Intake(add);

function add(files, made) {
  const added = files.map((file) => new Clip(file, made));
  for (const clip of added) {
    clips.push(clip);
    shelf.add(clip);
    queue.add(clip);
    read(clip);
  }
  if (added.length) select(added[0]);
}

function read(clip) {
  reading = reading.then(async () => {
    if (!clips.includes(clip)) return;
    await clip.read();
    shelf.update(clip);
    if (clip === selected) showPicture();
    else clip.rest();
  });
}

function remove(clip) {
  clips.splice(clips.indexOf(clip), 1);
  queue.cancel(clip);
  shelf.remove(clip);
  if (clip === selected) select(clips[0] ?? null);
  else answers.neighbours(clips);
}

function select(clip) {
  if (clip === selected) return;
  selected?.rest();
  selected = clip;
  shelf.select(clip);
  byId("clip").hidden = clip === null;
  byId("empty").hidden = clip !== null;
  player.load(null);
  URL.revokeObjectURL(saved);
  if (!clip) return;
  saved = URL.createObjectURL(clip.file);
  Object.assign(byId("save"), { href: saved, download: clip.name, hidden: !clip.made });
  showPicture();
  showClip();
  if (!clip.samples) read(clip);
}

/** After every change of a clip. */
function changed(clip) {
  shelf.update(clip);
  const message = { done: () => told(clip), failed: () => clip.message, busy: () => clip.message }[clip.state];
  const news = message ? `${clip.name}: ${message()}` : "";
  if (news && byId("status").textContent !== news) byId("status").textContent = news;
  if (clip !== selected) {
    answers.neighbours(clips);
    return;
  }
  if (clip.state === "done" && !clip.samples) showPicture(); // now its length is known
  showClip();
}

function showPicture() {
  byId("unreadable").textContent = selected.unreadable;
  byId("unreadable").hidden = !selected.unreadable;
  byId("play").disabled = !selected.samples;
  byId("plate").hidden = Boolean(selected.unreadable) && selected.duration === null;
  player.load(selected.samples);
  plot.show(selected);
  showTiers();
  showMeta();
}

function showClip() {
  byId("name").textContent = selected.name;
  showMeta();
  const request = options.ready ? options.request() : null;
  const outdated = request !== null && JSON.stringify(request.options) !== JSON.stringify(selected.options);
  showState(selected, outdated);
  answers.show(selected, clips);
  showTiers();
  if (request) showCode(request.options);
  byId("code").hidden = request === null;
}

function showCode(asked) {
  const withKey = Boolean(key.get());
  byId("curl").textContent = curl(selected.name, asked, withKey);
  byId("python").textContent = python(selected.name, asked, withKey);
  byId("code-note").hidden = !withKey;
}

function showTiers() {
  const { transcription, classification } = selected.answer ?? {};
  plot.tiers(transcription?.words ?? [], classification?.events ?? []);
}

function showMeta() {
  const { duration, file, peak, times } = selected;
  const parts = [duration === null ? "" : clock(duration), bytes(file.size)];
  if (peak) parts.push(`peak ${signed(20 * Math.log10(peak), 1)} dB`);
  if (times) parts.push(`answer ${took(times.total)}, model ${took(times.inference)}`);
  byId("meta").textContent = parts.filter(Boolean).join(" · ");
}

const took = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : clock(ms / 1000, 1));
const bytes = (size) => (size < 1e6 ? `${Math.ceil(size / 1e3)} kB` : `${(size / 1e6).toFixed(1)} MB`);

// The key and the model

function askForKey(message) {
  byId("key-problem").textContent = key.get() ? message : "This service asks for an API key.";
  byId("key-form").hidden = false;
  byId("docs").hidden = true;
  byId("key").focus();
}

async function connect() {
  for (;;) {
    try {
      options.offer(await models());
      break;
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      if (error.status === 401) return askForKey(error.message);
      notice(`${error.message} The page tries again.`);
      await new Promise((resume) => setTimeout(resume, 1000 * (error.retryAfter ?? 2)));
    }
  }
  notice("");
  byId("key-form").hidden = true;
  byId("forget").hidden = !key.get();
  byId("docs").hidden = Boolean(key.get()); // a link cannot send it
  if (selected) showClip();
  queue.resume();
}

function notice(text) {
  if (byId("notice").textContent !== text) byId("notice").textContent = text;
  byId("notice").hidden = !text;
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key.set(byId("key").value);
  byId("key").value = "";
  connect();
});
byId("forget").addEventListener("click", () => {
  key.set("");
  byId("forget").hidden = true;
  connect();
});

// Playing

player.onmove = (seconds) => {
  byId("position").textContent = clock(seconds);
  plot.moveTo(seconds);
  answers.moveTo(seconds, player.playing);
};
player.onstate = () => {
  byId("play").textContent = player.playing ? "Pause" : "Play";
  player.onmove(player.position);
};
byId("play").addEventListener("click", () => (player.playing ? player.pause() : player.play()));
byId("zoom-in").addEventListener("click", () => plot.zoom(2));
byId("zoom-out").addEventListener("click", () => plot.zoom(0.5));
byId("zoom-whole").addEventListener("click", () => plot.whole());
byId("again").addEventListener("click", () => queue.add(selected));
byId("cancel").addEventListener("click", () => queue.cancel(selected));
byId("copy-curl").append(copyButton("Copy", () => byId("curl").textContent));
byId("copy-python").append(copyButton("Copy", () => byId("python").textContent));

document.addEventListener("themechange", (event) => {
  plot.recolour(event.detail);
  shelf.recolour();
  answers.stripes();
});

connect();
