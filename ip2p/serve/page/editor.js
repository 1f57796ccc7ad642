// The page: a picture in, an instruction, the edit beside its source, what people think of it. All state is in `now`.

import * as api from "/page/api.js";
import { Mask } from "/page/mask.js";

const $ = (id) => document.getElementById(id);
const mask = new Mask($("mask"), $("ring"), $("before"));
const now = { source: null, edit: null, asking: false, busy: null, past: null, opening: null };
const SETTINGS = ["text_guidance", "image_guidance", "steps"];
const MAX_DRAWN = 2 ** 31;
const THUMBNAIL = 240;

function say(text) {
  $("message").textContent = text ?? "";
}

function show(image, blob) {
  if (image.src.startsWith("blob:")) URL.revokeObjectURL(image.src);
  image.src = URL.createObjectURL(blob);
  image.hidden = false;
}

// What goes wrong is said, and stays until the next thing a person does; reading in the background never takes it away.
async function trying(work) {
  try {
    return await work();
  } catch (error) {
    say(error instanceof api.ApiError ? error.message : "The server cannot be reached.");
    return null;
  }
}

// --- the picture

function take(blob) {
  now.source = blob;
  now.edit = null;
  now.past = null;
  now.opening = null;
  show($("before"), blob);
  $("viewer").hidden = false;
  for (const id of ["after", "wipe", "verdict", "choice"]) $(id).hidden = true;
  painting(false);
  mask.clear();
  $("drop").classList.add("small");
  $("drop").querySelector("strong").textContent = "Another picture";
  $("caption").textContent = "";
  say();
  $("instruction").focus();
}

function takeFirst(files) {
  const file = [...(files ?? [])].find((f) => f.type.startsWith("image/"));
  if (file) take(file);
}

$("file").addEventListener("change", (e) => takeFirst(e.target.files));
$("drop").addEventListener("keydown", (e) => {
  if (e.target !== e.currentTarget || (e.key !== "Enter" && e.key !== " ")) return;
  e.preventDefault();
  $("file").click();
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (e) => {
    e.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") takeFirst(e.dataTransfer.files);
  });
}
document.addEventListener("paste", (e) => takeFirst(e.clipboardData.files));
$("wipe").addEventListener("input", (e) => $("frame").style.setProperty("--at", `${e.target.value}%`));

// --- a part of it

function painting(on) {
  $("frame").classList.toggle("painting", on);
  $("mask").hidden = $("brush-label").hidden = !on;
  $("paint").setAttribute("aria-pressed", String(on));
  if (on) mask.begin();
}

$("paint").addEventListener("click", () => {
  painting($("mask").hidden);
  if (!$("mask").hidden) $("mask").focus();
});
$("brush").addEventListener("input", (e) => (mask.brush = Number(e.target.value)));
$("unpaint").addEventListener("click", () => {
  mask.clear();
  if (!$("mask").hidden) mask.begin();
});
mask.onPaint = () => {
  $("unpaint").hidden = !mask.painted;
  $("paint").textContent = mask.painted ? "Only the painted part is edited" : "Edit only a part";
};

// --- an edit

async function asked(version) {
  const form = new FormData();
  form.set("image", now.source, "picture");
  form.set("instruction", $("instruction").value.trim());
  for (const name of SETTINGS) form.set(name, $(name).dataset.exact);
  form.set("seed", $("seed").value);
  if (version) form.set("version", version);
  if (mask.painted) form.set("mask", await mask.blob(), "mask.png");
  return form;
}

// Previews are shown only while the picture and the edit on the page are those that they belong to.
async function follow(job, source, shown = null) {
  now.busy = job.id;
  $("progress").hidden = false;
  $("verdict").hidden = true;
  try {
    for await (const { kind, told } of api.events(job.id)) {
      $("bar").value = told.step / told.steps;
      $("step").textContent = told.state === "queued" ? "waiting" : `${told.step} of ${told.steps}`;
      if (told.preview && now.source === source && now.edit === shown) {
        if ($("after").src.startsWith("blob:")) URL.revokeObjectURL($("after").src);
        $("after").src = `data:image/png;base64,${told.preview}`;
        $("after").hidden = false;
        $("frame").classList.add("whole");
      }
      if (kind === "failed") throw new api.ApiError("The edit failed; the server's log says why.", 500);
      if (kind === "cancelled") return null;
      if (kind === "done") return told;
    }
    return null;
  } finally {
    now.busy = null;
    $("progress").hidden = true;
  }
}

async function edit() {
  if (!now.source) return say("Choose a picture first.");
  if (!$("instruction").value.trim()) return say("Say what should change.");
  if (now.asking) return null;
  now.asking = true;
  say();
  painting(false);
  $("go").disabled = true;
  try {
    return await editNow(now.source);
  } finally {
    now.asking = false;
    $("go").disabled = false;
  }
}

async function editNow(source) {
  if (!$("fixed").checked || $("seed").value === "") $("seed").value = Math.floor(Math.random() * MAX_DRAWN);
  const champion = $("version").dataset.champion;
  const picked = $("version").value === champion ? null : $("version").value; // whoever picked none gets the champion of the day
  const before = now.edit;
  $("verdict").hidden = $("choice").hidden = true;
  now.edit = null;
  const form = await trying(() => asked(picked));
  const done = form && (await trying(async () => follow(await api.ask(form), source)));
  if (now.source !== source || now.edit) return remember(); // another picture was chosen meanwhile, or an edit opened again
  if (!done) {
    $("after").hidden = $("wipe").hidden = true;
    $("frame").classList.remove("whole");
    return;
  }
  await trying(() => present(done));
  if (now.source !== source || now.edit !== done) return remember();
  if ($("beside").checked && picked) {
    form.delete("version"); // the same edit, whatever the form says by now
    const other = await trying(async () => follow(await api.ask(form), source, done));
    if (now.source !== source || now.edit !== done) return remember();
    if (other) await compare(done, other);
    await trying(() => present(done, false));
  } else if (before && before.instruction === done.instruction && before.mask === done.mask && now.past === before.id) {
    await compare(done, before);
  }
  now.past = done.id;
  if (!picked && done.version !== champion) return begin({ keep: true }); // promoted since this page was opened
  await remember();
}

async function present(told, fresh = true) {
  now.edit = told;
  const blob = await api.picture(told.id);
  if (now.edit !== told) return; // another picture or edit took its place meanwhile
  show($("after"), blob);
  $("frame").classList.remove("whole");
  $("wipe").hidden = $("verdict").hidden = false;
  if (fresh) {
    for (const id of ["up", "down"]) $(id).setAttribute("aria-pressed", "false");
    $("reason").hidden = true;
    $("reason").value = "";
  }
  const scales = `instruction ${told.text_guidance}, picture ${told.image_guidance}, seed ${told.seed}, version ${told.version}`;
  $("caption").textContent = `${told.instruction} · ${scales}`;
  if ($("download").href.startsWith("blob:")) URL.revokeObjectURL($("download").href);
  $("download").href = URL.createObjectURL(blob);
  $("again").onclick = () => take(blob);
}

$("form").addEventListener("submit", (e) => {
  e.preventDefault();
  edit();
});
$("instruction").addEventListener("keydown", (e) => {
  if (e.key === "Enter" && !e.shiftKey && !e.isComposing) {
    e.preventDefault();
    $("form").requestSubmit();
  }
});
$("cancel").addEventListener("click", () => now.busy && trying(() => api.cancel(now.busy)));

// --- what people think of it

function thumb(id, value) {
  $(id).addEventListener("click", async () => {
    const edit = now.edit;
    if (!edit) return;
    say();
    if ((await trying(() => api.vote({ kind: "thumb", edit: edit.id, value }))) && now.edit === edit) {
      $("up").setAttribute("aria-pressed", String(value === 1));
      $("down").setAttribute("aria-pressed", String(value === -1));
      $("reason").hidden = false;
    }
  });
}
thumb("up", 1);
thumb("down", -1);
$("reason").addEventListener("change", () => {
  const value = $("up").getAttribute("aria-pressed") === "true" ? 1 : -1;
  const reason = $("reason").value || null;
  if (!now.edit) return;
  trying(() => api.vote({ kind: "thumb", edit: now.edit.id, value, reason }));
});

async function compare(first, second) {
  for (const [id, told] of [["first", first], ["second", second]]) {
    const blob = await api.picture(told.id);
    if (now.edit !== first) return;
    show($(id).querySelector("img"), blob);
  }
  $("second").querySelector("span").textContent = first.version === second.version ? "The one before" : `Version ${second.version}`;
  $("first").querySelector("span").textContent = first.version === second.version ? "This one" : `Version ${first.version}`;
  $("choice").hidden = false;
  const choose = (value) => async () => {
    say();
    if (await trying(() => api.vote({ kind: "pair", edit: first.id, other: second.id, value }))) $("choice").hidden = true;
  };
  $("first").onclick = choose(1);
  $("second").onclick = choose(-1);
  $("same").onclick = choose(0);
}

// --- history

async function remember() {
  const told = await trying(api.history);
  if (!told) return;
  $("history").replaceChildren(
    ...told.edits.map((e) => {
      const item = document.createElement("li");
      const button = document.createElement("button");
      const image = document.createElement("img");
      const text = document.createElement("span");
      text.textContent = e.instruction;
      image.alt = "";
      image.addEventListener("load", () => URL.revokeObjectURL(image.src));
      api.picture(e.id, "picture", THUMBNAIL).then((blob) => show(image, blob), () => {});
      button.type = "button";
      button.title = e.instruction;
      button.append(image, text);
      button.addEventListener("click", () => reopen(e));
      item.append(button);
      return item;
    }),
  );
}

async function reopen(e) {
  await trying(async () => {
    now.opening = e;
    const source = await api.picture(e.id, "source");
    const part = e.mask ? await api.picture(e.id, "mask") : null;
    if (now.opening !== e) return; // another was opened, or a picture chosen
    take(source);
    $("instruction").value = e.instruction;
    for (const name of SETTINGS) set(name, e[name]);
    $("seed").value = e.seed;
    now.edit = e; // before anything is waited for: whoever asks at once may compare with it
    now.past = e.id;
    if (part) await mask.take(part);
    if (now.source !== source || now.edit !== e) return;
    await present(e);
    if (now.edit !== e) return;
    $("viewer").scrollIntoView({ block: "nearest" });
  });
}

// --- settings

// A slider moves in steps; what an edit was made with, or is served with, need not lie on one and is kept exactly.
function set(name, value) {
  const input = $(name);
  input.min = Math.min(Number(input.min), value);
  input.max = Math.max(Number(input.max), value);
  input.dataset.exact = value;
  input.value = value;
  document.querySelector(`output[for=${name}]`).value = value;
}
for (const name of SETTINGS) $(name).addEventListener("input", (e) => set(name, Number(e.target.value)));

function offer(groups) {
  $("clicks").replaceChildren(
    ...groups.map((group) => {
      const line = document.createElement("div");
      const name = document.createElement("b");
      name.textContent = group.name;
      line.append(name);
      for (const instruction of group.instructions) {
        const button = document.createElement("button");
        button.type = "button";
        button.textContent = instruction.replace(/^make it (an? )?/, "");
        button.title = instruction;
        button.addEventListener("click", () => {
          $("instruction").value = instruction;
          if (now.source) edit();
        });
        line.append(button);
      }
      return line;
    }),
  );
}

async function begin({ again = false, keep = false } = {}) {
  const told = await trying(api.status);
  if (!told) return setTimeout(begin, 3000, { again: true, keep });
  if (again) say();
  offer(told.one_click);
  if (!told.ready) {
    $("served").textContent = "No editor is loaded yet";
    return setTimeout(begin, 3000, { keep });
  }
  $("served").textContent = `${told.model}, version ${told.version}`;
  if (!keep) for (const name of SETTINGS) set(name, told.defaults[name]);
  const { versions } = (await trying(api.versions)) ?? { versions: [] };
  $("version").dataset.champion = told.version;
  $("version").replaceChildren(
    ...versions.map((v) => new Option(v.aliases.length ? `${v.version} (${v.aliases.join(", ")})` : v.version, v.version)),
  );
  $("version").value = told.version;
  await remember();
  return null;
}

api.onKeyWanted(
  () =>
    new Promise((resolve) => {
      $("key").value = "";
      $("ask-key").returnValue = "";
      $("ask-key").addEventListener("close", () => resolve($("ask-key").returnValue === "given" ? $("key").value || null : null), { once: true });
      $("ask-key").showModal();
    }),
);
begin();
