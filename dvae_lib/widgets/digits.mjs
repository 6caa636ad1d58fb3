import { EXPLORERS, EXTRA, MISSING, corrupt, crossEntropy, drawingButtons, dropDrawing } from "./widgets.mjs";
import { freshNoise, fromHex, interpolate, latentMap, make, makeEditable } from "./widgets.mjs";
import { makePicture, makeTitle, newPosterior, sample, swatch, toHex, wrongPixels } from "./widgets.mjs";

// The explorers of handwritten digits. Their networks have codes of two entries or of fifty; nothing here knows which
// digit a picture shows, and so what is said is what can be counted.

/** How many pixels are set, and of how many the decoder is not sure. */
export function countsInWords(picture) {
  const count = (test) => picture.reduce((sum, value) => sum + (test(value) ? 1 : 0), 0);
  const [set, open] = [count((value) => value >= 0.5), count((value) => value > 0.1 && value < 0.9)];
  return `${set} pixels set, ${open} between 0.1 and 0.9`;
}

/** How far a code is from the mean of a posterior, in its standard deviations. */
export function deviations(code, { mean, logVariance }) {
  const distance = (value, j) => (value - mean[j]) / Math.exp(logVariance[j] / 2);
  return Math.hypot(...code.map(distance));
}

EXPLORERS.digit_map = (page) => latentMap(page, { words: countsInWords, dots: false });

EXPLORERS.digit_interpolate = (page) =>
  interpolate(page, {
    words: countsInWords,
    traits: ["first_digit", "last_digit"],
    dots: false,
    paint(get, first, last) {
      fromHex(get("digits")[get("first_digit")], first);
      fromHex(get("digits")[get("last_digit")], last);
    },
  });

EXPLORERS.digit_denoise = digitDenoise;

const BRUSH = 1.1; // pixels: its radius

function digitDenoise({ get, set, root, compared, say, model, view }) {
  const sheets = compared();
  const [{ network: { size } }] = sheets;
  const clean = {
    image: new Float32Array(size * size),
    write: () => set({ drawing: toHex(clean.image) }),
  };
  const noisy = new Float32Array(size * size);
  const editor = makePicture("clean picture: draw on it", 1, size);
  const input = makePicture("input of the encoder", 1, size);
  const markCursor = makeEditable(editor, clean, view.redraw, BRUSH);
  const tools = make(
    "div",
    { class: "dvae-tools" },
    freshNoise({ get, set }),
    ...drawingButtons(set, "digit", size * size),
    make(
      "p",
      { class: "dvae-legend" },
      swatch(`rgb(${EXTRA})`, "pixel too many"),
      swatch(`rgb(${MISSING})`, "pixel missing"),
    ),
  );
  root.append(make("div", { class: "dvae-inputs dvae-large" }, editor.element, input.element, tools));
  const panels = sheets.map((sheet) => digitReconstruction(sheet));
  root.append(make("div", { class: "dvae-pair" }, ...panels.map(({ element }) => element)));
  dropDrawing({ model, get, set }, ["digit"]);
  return {
    traits: ["digit", "drawing", "kind_of_noise", "level", "seed", "draw_code"],
    draw() {
      fromHex(get("drawing") || get("digits")[get("digit")], clean.image);
      corrupt(get("kind_of_noise"), get("level"), clean.image, get("seed"), noisy);
      editor.draw(clean.image);
      markCursor();
      input.draw(noisy);
      const seen = panels.map((panel) => panel.draw(clean.image, noisy, get("draw_code") ? get("seed") : null));
      say(`Input with ${wrongPixels(noisy, clean.image)} wrong pixels. ${seen.join(". ")}.`);
    },
  };
}

/** Probabilities and reconstruction of one network, with what is wrong and how far the code has moved as numbers. */
function digitReconstruction({ network, name }) {
  const [map, binary] = ["probabilities", "at 1/2"].map((title) => makePicture(title, 1, network.size));
  const [wrong, nats, moved] = [0, 1, 2].map(() => make("strong"));
  const count = network.size ** 2;
  const note = make("p", { class: "dvae-note" }, wrong, ` wrong pixels of ${count}; cross-entropy `, nats, " nats; ");
  note.append("the noise moves the code by ", moved, " deviations");
  const [ofClean, ofNoisy] = [newPosterior(network.codes), newPosterior(network.codes)];
  const code = new Float32Array(network.codes);
  const [probabilities, logits] = [new Float32Array(count), new Float32Array(count)];
  const pictures = make("div", { class: "dvae-two" }, map.element, binary.element);
  return {
    element: make("section", { class: "dvae-panel" }, makeTitle(name), pictures, note),
    /** Draw, and return in words what is seen. With a seed the code is drawn from the posterior, else its mean. */
    draw(image, noisy, seed) {
      network.encode(image, ofClean);
      network.encode(noisy, ofNoisy);
      if (seed === null) code.set(ofNoisy.mean);
      else sample(ofNoisy, seed, code);
      network.decode(code, probabilities, logits);
      map.draw(probabilities);
      binary.drawBinary(probabilities, image);
      wrong.textContent = wrongPixels(probabilities, image);
      nats.textContent = crossEntropy(logits, image).toFixed(1);
      moved.textContent = deviations(ofNoisy.mean, ofClean).toFixed(1);
      return `${name}: ${wrong.textContent} wrong pixels, cross-entropy ${nats.textContent} nats`;
    },
  };
}
