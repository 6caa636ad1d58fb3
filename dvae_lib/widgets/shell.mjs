import { EXPLORERS, make, makeButton, readSheets } from "./widgets.mjs";

// What every explorer has around it: `render`, which anywidget calls; the page's address, which keeps what the reader
// has set; the buttons that copy a link and save a picture.
//
// An address looks like explore.html#denoise=row:4,level:0.2&hide=controls. Its parts are joined by "&". One names an
// explorer and what is set otherwise there than on the page as it comes; "hide=controls" leaves the pictures alone,
// for a lecture; a heading's anchor is a part as well, and stays.

// ---------------------------------------------------------------------------------------------------------- addresses

const partsOf = (hash) => hash.replace(/^#/, "").split("&").filter(Boolean);
const isOf = (key) => (part) => part.startsWith(`${key}=`);

/** The text behind `key=` in an address's fragment; null where there is none, or none that can be decoded. */
export function readPart(hash, key) {
  const part = partsOf(hash).find(isOf(key));
  try {
    return part === undefined ? null : decodeURIComponent(part.slice(key.length + 1));
  } catch {
    return null;
  }
}

/** The fragment with `text` behind `key=`, or without that part where `text` is null. The other parts stay. */
export function withPart(hash, key, text) {
  const parts = partsOf(hash).filter((part) => !isOf(key)(part));
  if (text !== null) parts.push(`${key}=${text}`);
  return parts.length ? `#${parts.join("&")}` : "";
}

/** What `text` means to a trait, whose type and bounds are in words of JSON Schema; undefined if it is nonsense. */
export function readValue(text, { type, minimum, maximum, pattern }) {
  if (type === "boolean") return text === "true" || (text === "false" ? false : undefined);
  if (type === "string") return new RegExp(`^(?:${pattern})$`).test(text) ? text : undefined;
  if (!/^-?\d+(\.\d+)?(e-?\d+)?$/.test(text)) return undefined;
  const value = Number(text);
  const fits = value >= minimum && value <= maximum && (type === "number" || Number.isInteger(value));
  return fits ? value : undefined;
}

/** What an explorer's part of an address says of the traits in `schema`; what is not understood is left out. */
export function readSettings(text, schema) {
  const settings = {};
  for (const setting of (text ?? "").split(",")) {
    const [name, ...rest] = setting.split(":");
    if (!Object.hasOwn(schema, name)) continue;
    const value = readValue(safely(rest.join(":")), schema[name]);
    if (value !== undefined) settings[name] = value;
  }
  return settings;
}

const safely = (text) => {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
};

/** What `readSettings` reads: those of the values that are not the `stored` ones. A string is encoded twice, once for
 * this and once for the address. */
export function writeSettings(values, stored, schema) {
  const write = (value) =>
    typeof value === "number"
      ? String(Number(value.toPrecision(12)))
      : encodeURIComponent(encodeURIComponent(String(value)));
  return Object.keys(schema)
    .filter((name) => write(values[name]) !== write(stored[name])) // a slider's 0.6 may be 0.6000000000000001
    .map((name) => `${name}:${write(values[name])}`)
    .join(",");
}

/** Whether an address's fragment asks for the pictures alone. */
export const hidesControls = (hash) => (readPart(hash, "hide") ?? "").split(",").includes("controls");

/** The explorer that an address is about: the first that it names, unless a heading's anchor comes before it. */
export const firstNamed = (hash) => {
  const first = partsOf(hash).find((part) => !isOf("hide")(part));
  return first?.includes("=") ? first.split("=")[0] : undefined;
};

/** In a page of the book: the explorer's name in the address, and its traits as the page stores them. Elsewhere, as in
 * JupyterLab or in a frame of another page, the address is not this notebook's: null. Of several explorers of a kind
 * the second is called denoise-2, and so on. */
async function findStored(model) {
  const script = document.querySelector('script[type="application/vnd.jupyter.widget-state+json"]');
  if (!script || window.parent !== window || !model.get("schema")) return null;
  const shared = (globalThis[Symbol.for("dvae_lib.stored")] ??= new WeakMap());
  if (!shared.has(script)) shared.set(script, JSON.parse(script.textContent).state);
  let count = 0;
  for (const [id, { state }] of Object.entries(shared.get(script))) {
    if (state.kind !== model.get("kind") || !state.schema) continue;
    count += 1;
    const found = await model.widget_manager.get_model(id);
    if (found.get("schema") === model.get("schema")) {
      return { key: count === 1 ? state.kind : `${state.kind}-${count}`, values: state };
    }
  }
  return null;
}

/** Keep an explorer's state in the page's address, and set it as the address says, now and when that changes. */
function keepAddress({ model, set, names, stored: { key, values: stored }, wait, reveal }) {
  const collect = (valueOf) => Object.fromEntries(kept.map((name) => [name, valueOf(name)]));
  const kept = names.filter((name) => Object.hasOwn(model.get("schema"), name));
  const schema = collect((name) => model.get("schema")[name]);
  const settings = () => writeSettings(collect((name) => model.get(name)), stored, schema);
  const replace = (hash) => {
    if (hash === location.hash) return;
    history.replaceState(history.state, "", hash || location.pathname + location.search);
  };
  const write = () => {
    const there = { ...stored, ...readSettings(readPart(location.hash, key), schema) };
    if (settings() !== writeSettings(there, stored, schema)) replace(withPart(location.hash, key, settings() || null));
  };
  const read = () => {
    document.documentElement.toggleAttribute("data-dvae-bare", hidesControls(location.hash));
    const text = readPart(location.hash, key);
    if (text === null) return settings() && later(); // the way to a heading says nothing of the explorers
    set({ ...collect((name) => stored[name]), ...readSettings(text, schema) });
    return firstNamed(location.hash) === key && reveal();
  };
  const later = () => wait("address", 400, write);
  for (const name of kept) model.on(`change:${name}`, later);
  window.addEventListener("hashchange", read);
  // a link to the address where the page is already: no event says so
  const again = ({ target }) => target.closest("a[href^='#']")?.hash === location.hash && read();
  document.addEventListener("click", again);
  read();
  return {
    link: () => location.href.split("#")[0] + withPart("", key, settings()),
    hide(hidden) {
      replace(withPart(location.hash, "hide", hidden ? "controls" : null));
      document.documentElement.toggleAttribute("data-dvae-bare", hidden);
      reveal(); // what was above has another height
    },
    dispose() {
      window.removeEventListener("hashchange", read);
      document.removeEventListener("click", again);
    },
  };
}

/** Scroll to `element`, and again as long as the page above it grows, unless the reader does something. */
function scrollTo(element) {
  const over = new AbortController();
  const observer = new ResizeObserver(() => {
    if (over.signal.aborted) observer.disconnect();
    else element.scrollIntoView({ behavior: "instant" }); // the theme's glides, and would be late
  });
  observer.observe(document.body); // which calls at once
  for (const name of ["wheel", "touchstart", "pointerdown", "keydown"]) {
    window.addEventListener(name, () => over.abort(), { signal: over.signal, passive: true });
  }
  setTimeout(() => over.abort(), 30000);
}

// ------------------------------------------------------------------------------------------------------------ buttons

/** The row of buttons at the end of an explorer; those about the address where there is one. */
function makeShell({ root, name, address, say }) {
  const shell = make("div", { class: "dvae-shell", role: "group", "aria-label": "This explorer" });
  const save = makeButton("Save picture", () => savePicture(root, `dvae-${name}.png`, () => say("Picture saved.")));
  if (!address) {
    shell.append(save);
    return shell;
  }
  const field = make("input", { type: "text", readonly: "", hidden: "", "aria-label": "Link to this view" });
  const copy = makeButton("Copy link", async () => {
    field.value = address.link();
    const copied = await copyText(field);
    if (copied && document.activeElement === field) copy.focus(); // which is hidden now
    field.hidden = copied;
    copy.textContent = copied ? "Copied" : "Copy link";
    say(copied ? "Link copied." : "The link is selected: copy it with the keyboard.");
    if (copied) setTimeout(() => (copy.textContent = "Copy link"), 2000);
  });
  const toggle = (hidden, other) => () => {
    address.hide(hidden);
    other().focus();
  };
  const hide = makeButton("Hide controls", toggle(true, () => show), { title: "For a lecture: the pictures alone" });
  const show = makeButton("Show controls", toggle(false, () => hide));
  show.classList.add("dvae-show");
  shell.append(copy, save, hide, show, field);
  return shell;
}

/** Copy what `field` holds, and return whether that worked; if not, it is shown and selected. */
async function copyText(field) {
  try {
    await navigator.clipboard.writeText(field.value);
    return true;
  } catch {
    // not allowed, or not there: a page that does not come over https
    field.hidden = false;
    field.focus();
    field.select();
    return document.execCommand("copy");
  }
}

// ----------------------------------------------------------------------------------------------------- saved pictures

const PAPER_MARGIN = 16; // points of the page around a saved picture
const PAPER_SCALE = 2; // pixels a point

/** Offer what `root` shows as a PNG, and call `done`. */
function savePicture(root, name, done) {
  paintPage(root).toBlob((blob) => {
    const link = make("a", { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    done();
  }, "image/png");
}

/** Draw an element of the page as it is seen: its boxes, its canvases and its text, on the page's ground. */
function paintPage(root) {
  const { left, top, width, height } = root.getBoundingClientRect();
  const scaled = (length) => Math.ceil(PAPER_SCALE * (length + 2 * PAPER_MARGIN));
  const canvas = make("canvas", { width: scaled(width), height: scaled(height) });
  const context = canvas.getContext("2d");
  context.fillStyle = groundOf(root);
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.scale(PAPER_SCALE, PAPER_SCALE);
  context.translate(PAPER_MARGIN - left, PAPER_MARGIN - top);
  const raised = []; // elements that lie above what comes after them
  paintElement(context, root, raised);
  for (const element of raised) paintElement(context, element, raised);
  return canvas;
}

const isClear = (colour) => /^(transparent|rgba\(.*, 0\)|color\(.* \/ 0\))$/.test(colour);

/** The first ground that is behind `element`. */
function groundOf(element) {
  for (let box = element; box; box = box.parentElement) {
    const { backgroundColor } = getComputedStyle(box);
    if (!isClear(backgroundColor)) return backgroundColor;
  }
  return "white";
}

function paintElement(context, element, raised) {
  const style = getComputedStyle(element);
  const box = element.getBoundingClientRect();
  if (style.visibility !== "visible" || style.display === "none") return;
  context.save();
  context.globalAlpha *= style.opacity;
  cutOut(context, polygonOf(style.clipPath, box));
  paintGround(context, style, box);
  if (element.tagName === "CANVAS") {
    context.imageSmoothingEnabled = style.imageRendering !== "pixelated";
    context.drawImage(element, box.x, box.y, box.width, box.height);
  }
  paintShadow(context, style, box);
  paintBorder(context, style, box);
  for (const child of element.childNodes) {
    if (child.nodeType === Node.TEXT_NODE) paintText(context, style, child);
    if (child.nodeType !== Node.ELEMENT_NODE) continue;
    if (getComputedStyle(child).zIndex > 0) raised.push(child);
    else paintElement(context, child, raised);
  }
  context.restore();
}

function paintText(context, style, node) {
  context.font = `${style.fontStyle} ${style.fontWeight} ${style.fontSize} ${style.fontFamily}`;
  context.fillStyle = style.color;
  for (const { text, x, y } of linesOf(node)) {
    context.fillText(text, x, y + context.measureText(text).fontBoundingBoxAscent);
  }
}

/** Begin a path along the edge of a box that is made larger, or smaller, by `grown` on each side. */
function outline(context, style, { x, y, width, height }, grown) {
  const radius = parseFloat(style.borderTopLeftRadius) || 0;
  const [wide, high] = [width + 2 * grown, height + 2 * grown];
  context.beginPath();
  context.roundRect(x - grown, y - grown, wide, high, radius && Math.max(0, radius + grown));
}

/** The corners of a polygon in words of CSS, (x, y); none where there is no polygon. */
export function polygonOf(clipPath, { x, y, width, height }) {
  const [, corners] = /^polygon\((.*)\)$/.exec(clipPath) ?? [];
  const length = (text, whole) => (text.endsWith("%") ? (whole * parseFloat(text)) / 100 : parseFloat(text));
  return (corners?.split(",") ?? []).map((corner) => {
    const [right, down] = corner.trim().split(" ");
    return [x + length(right, width), y + length(down, height)];
  });
}

/** Paint from now on within a polygon only, if there is one. */
function cutOut(context, corners) {
  if (!corners.length) return;
  context.beginPath();
  for (const corner of corners) context.lineTo(...corner);
  context.clip();
}

/** A box's colour, and the stripes or dots on it. */
function paintGround(context, style, box) {
  outline(context, style, box, 0);
  if (!isClear(style.backgroundColor)) Object.assign(context, { fillStyle: style.backgroundColor }).fill();
  const image = style.backgroundImage;
  const stops = stopsOf(image);
  if (!stops.length) return;
  context.save();
  context.clip();
  if (image.startsWith("radial")) paintDots(context, stops, style.backgroundSize, box);
  else paintStripes(context, stops, parseFloat(image.split("(")[1]), box);
  context.restore();
}

/** The stops of a gradient in words of CSS: colours, and their places in points. None where there is no gradient. */
export const stopsOf = (image) =>
  [...image.matchAll(/(rgba?\([^)]*\)|transparent)((?: [\d.]+px)+)/g)].flatMap(([, colour, places]) =>
    places.trim().split(" ").map((place) => [colour, parseFloat(place)]),
  );

/** Where the line of a gradient of so many degrees begins and ends: the first and the last corner that it reaches. */
export function gradientLine(degrees, { x, y, width, height }) {
  const [right, down] = [Math.sin((degrees * Math.PI) / 180), -Math.cos((degrees * Math.PI) / 180)];
  const length = Math.abs(width * right) + Math.abs(height * down);
  const end = (sign) => [x + (width + sign * length * right) / 2, y + (height + sign * length * down) / 2];
  return { from: end(-1), to: end(1), length };
}

function paintStripes(context, stops, degrees, box) {
  const { from, to, length } = gradientLine(degrees, box);
  const gradient = context.createLinearGradient(...from, ...to);
  const [, period] = stops.at(-1);
  for (let start = 0; start < length; start += period) {
    for (const [colour, place] of stops) gradient.addColorStop(Math.min(1, (start + place) / length), colour);
  }
  context.fillStyle = gradient;
  context.fillRect(box.x, box.y, box.width, box.height);
}

function paintDots(context, stops, size, box) {
  const [width, height] = size.split(" ").map(parseFloat);
  const [, radius] = stops.at(-1);
  for (let x = box.left; x < box.right; x += width) {
    for (let y = box.top; y < box.bottom; y += height) {
      const centre = [x + width / 2, y + height / 2];
      const gradient = context.createRadialGradient(...centre, 0, ...centre, radius);
      for (const [colour, place] of stops) gradient.addColorStop(place / radius, colour);
      context.fillStyle = gradient;
      context.fillRect(x, y, width, height);
    }
  }
}

/** A shadow that is an even line around a box, or along its inside; undefined where it is none. */
export function shadowOf(boxShadow) {
  const [, colour, width, inset] = /^(.+?\)) 0px 0px 0px ([\d.]+)px( inset)?$/.exec(boxShadow) ?? [];
  return colour && { colour, width: Number(width), inside: Boolean(inset) };
}

function paintShadow(context, style, box) {
  const shadow = shadowOf(style.boxShadow);
  if (!shadow) return;
  const { colour, width, inside } = shadow;
  outline(context, style, box, inside ? -parseFloat(style.borderTopWidth) - width / 2 : width / 2);
  Object.assign(context, { lineWidth: width, strokeStyle: colour }).stroke();
}

/** The sides of a border that are seen. */
export const bordersOf = (style) =>
  ["Top", "Right", "Bottom", "Left"]
    .map((side) => {
      const [width, line, colour] = ["Width", "Style", "Color"].map((what) => style[`border${side}${what}`]);
      return { side, width: parseFloat(width), dashed: line === "dashed", colour };
    })
    .filter(({ width }) => width > 0);

/** The middle of the line that a border makes on one side of a box, from end to end: [x, y, x, y]. */
export function edgeOf({ left, top, right, bottom }, side, width) {
  const half = width / 2;
  return {
    Top: [left, top + half, right, top + half],
    Right: [right - half, top, right - half, bottom],
    Bottom: [left, bottom - half, right, bottom - half],
    Left: [left + half, top, left + half, bottom],
  }[side];
}

/** A border: around the box where all sides are alike, and else side by side. */
function paintBorder(context, style, box) {
  const borders = bordersOf(style);
  const stroke = ({ width, dashed, colour }) => {
    context.setLineDash(dashed ? [2 * width, 1.5 * width] : []); // about what browsers do
    Object.assign(context, { lineWidth: width, strokeStyle: colour }).stroke();
  };
  const kinds = new Set(borders.map(({ width, dashed, colour }) => `${width} ${dashed} ${colour}`));
  if (borders.length === 4 && kinds.size === 1) {
    outline(context, style, box, -borders[0].width / 2);
    stroke(borders[0]);
    return;
  }
  for (const border of borders) {
    const [x, y, ...end] = edgeOf(box, border.side, border.width);
    context.beginPath();
    context.moveTo(x, y);
    context.lineTo(...end);
    stroke(border);
  }
}

/** The lines into which the page breaks a text, each with the place of its upper left corner. */
function linesOf(node) {
  const [lines, range] = [[], document.createRange()];
  let start = 0;
  for (const letter of node.data) {
    range.setStart(node, start);
    range.setEnd(node, (start += letter.length));
    const [box] = range.getClientRects();
    if (!box?.width) continue; // a space that the page leaves out
    const line = lines.at(-1);
    if (line && Math.abs(line.y - box.y) < box.height / 2) line.text += letter.replace(/\s/, " ");
    else lines.push({ text: letter, x: box.x, y: box.y });
  }
  return lines;
}

// ------------------------------------------------------------------------------------------------------------- render

/** Name the parts of ipywidgets' controls for screen readers, which the page's own labels do not reach. */
function nameControls(box) {
  for (const label of box.querySelectorAll(".widget-label")) {
    const control = label.parentElement;
    for (const part of control.querySelectorAll("[role=slider], [contenteditable=true]")) {
      part.setAttribute("aria-label", label.textContent);
      if (part.isContentEditable) part.setAttribute("role", "textbox");
    }
  }
}

async function render({ model, el }) {
  const root = make("div", { class: "dvae" });
  const words = make("p", { class: "dvae-words" });
  const wrapper = make("div", { class: "dvae-frame" }, root, words);
  el.append(wrapper);
  const timers = {};
  const wait = (name, time, call) => {
    clearTimeout(timers[name]);
    timers[name] = setTimeout(call, time);
  };
  const get = (name) => model.get(name);
  const set = (values) => {
    for (const [name, value] of Object.entries(values)) model.set(name, value);
    model.save_changes();
  };
  let sheets;
  let stored;
  try {
    sheets = await readSheets(model);
    stored = await findStored(model);
  } catch (error) {
    words.textContent = `The explorer's networks cannot be read (${error.message}). Run its cell again.`;
    return undefined;
  }
  let frame = 0;
  const schedule = () => (frame ||= requestAnimationFrame(draw));
  const view = { complete: false, redraw: schedule };
  /** Tell a screen reader. What an explorer shows as the page opens is there to be read, and is not called out. */
  const say = (text) =>
    wait("say", 400, () => {
      if (text === words.textContent) return;
      words.textContent = text;
      words.setAttribute("aria-live", "polite");
    });
  const explorer = EXPLORERS[get("kind")]({
    model,
    get,
    set,
    root,
    sheets,
    compared: () => get("compared").map((index) => sheets[index]),
    later: (call) => wait("later", 150, call),
    say,
    view,
  });
  const durations = []; // of the last draws, in milliseconds
  const draw = () => {
    frame = 0;
    const start = performance.now();
    explorer.draw();
    durations.push(performance.now() - start);
    if (durations.length > 1000) durations.shift();
  };
  for (const name of explorer.traits) model.on(`change:${name}`, schedule);
  const reveal = () =>
    wait("reveal", 100, () => (el.isConnected ? scrollTo(el.closest(".dvae-explorer") ?? el) : reveal()));
  const names = explorer.traits;
  const address = stored && names.length ? keepAddress({ model, set, names, stored, wait, reveal }) : null;
  if (names.length) words.before(makeShell({ root, name: get("kind").replaceAll("_", "-"), address, say }));
  draw();
  // the planes' grounds, 400 pictures each, once the first ones are seen
  view.complete = true;
  frame = requestAnimationFrame(() => (frame = requestAnimationFrame(draw)));
  root.explorer = { sheets, draw, durations, shown: performance.now() }; // for tests and the curious
  const observer = new MutationObserver((changes) => {
    if (changes.some(({ target }) => !wrapper.contains(target))) nameControls(box);
  });
  let box;
  const attach = () => {
    box = el.closest(".dvae-explorer");
    if (!box) return el.isConnected || wait("attach", 50, attach);
    nameControls(box);
    return observer.observe(box, { childList: true, subtree: true });
  };
  attach();
  return () => {
    explorer.dispose?.();
    address?.dispose();
    observer.disconnect();
    cancelAnimationFrame(frame);
    Object.values(timers).forEach(clearTimeout);
  };
}

export default { render };
