import { EXPLORERS, EXTRA, MISSING, PIXELS, POSITIONS, SIDE, SIZE, cleanPicture, corrupt } from "./widgets.mjs";
import { crossEntropy, freshNoise, inWords, linear, make, makeButton, makeEditable } from "./widgets.mjs";
import { drawingButtons, dropDrawing, makePicture, makeTitle, paintSquare, swatch, wrongPixels } from "./widgets.mjs";

// The explorers of a code of bits and of denoising at all levels. Each has one network, of layers with ReLUs between.

export const LEVELS = 65; // of the noise
const [LOW, HIGH] = [0.3, 20]; // standard deviations

/** What `layers` make of `input`, with a ReLU between two of them: the last one's output. */
export function answer(layers, input) {
  return layers.reduce((values, layer, i) => {
    const output = new Float32Array(layer.rows);
    linear(layer, values, output, i < layers.length - 1);
    return output;
  }, input);
}

export const sigmoids = (logits) => logits.map((logit) => 1 / (1 + Math.exp(-logit)));

/** The standard deviation of the noise at this place among the levels. */
export const deviation = (level) => LOW * (HIGH / LOW) ** (level / (LEVELS - 1));

/** The network's probabilities of the pixels, for noise of the standard deviation `sigma`. */
export function guess(layers, noisy, sigma) {
  const input = new Float32Array(PIXELS + 1);
  const scale = Math.sqrt(sigma ** 2 + 0.1);
  for (let i = 0; i < PIXELS; i++) input[i] = noisy[i] / scale;
  input[PIXELS] = Math.log(sigma);
  return sigmoids(answer(layers, input));
}

/** The probabilities of the 256 squares given `noisy`. All squares have as many pixels, and so only the sum of the
 * noisy picture over a square, divided by the variance, tells them apart. */
export function exactPosterior(noisy, sigma) {
  const logits = Array.from({ length: POSITIONS * POSITIONS }, (_, i) => {
    const [row, column] = [Math.floor(i / POSITIONS), i % POSITIONS];
    let sum = 0;
    for (let y = row; y < row + SIDE; y++) {
      for (let x = column; x < column + SIDE; x++) sum += noisy[y * SIZE + x];
    }
    return sum / sigma ** 2;
  });
  const top = Math.max(...logits);
  const shares = logits.map((logit) => Math.exp(logit - top));
  const total = shares.reduce((sum, share) => sum + share, 0);
  return shares.map((share) => share / total);
}

/** The mean of the squares, weighted with `posterior`. */
export function posteriorMean(posterior) {
  const mean = new Float32Array(PIXELS);
  posterior.forEach((share, i) => {
    const [row, column] = [Math.floor(i / POSITIONS), i % POSITIONS];
    for (let y = row; y < row + SIDE; y++) {
      for (let x = column; x < column + SIDE; x++) mean[y * SIZE + x] += share;
    }
  });
  return mean;
}

/** Of how many squares, all equally probable, a choice would be as uncertain. */
export const perplexity = (posterior) =>
  Math.exp(posterior.reduce((sum, share) => sum - (share > 0 ? share * Math.log(share) : 0), 0));

export const squaredError = (found, truth) => found.reduce((sum, value, i) => sum + (value - truth[i]) ** 2, 0);

const flipped = (code, j) => code.slice(0, j) + (code[j] === "1" ? "0" : "1") + code.slice(j + 1);

EXPLORERS.bit_switches = bitSwitches;
EXPLORERS.noise_levels = noiseLevels;

function bitSwitches({ get, set, root, sheets: layers, say, model, view }) {
  const [encoder, decoder] = [layers.slice(0, 3), layers.slice(3)];
  const clean = cleanPicture({ get, set });
  const editor = makePicture("picture: draw on it");
  const [map, binary] = [makePicture("from the switches"), makePicture("at 1/2")];
  const markCursor = makeEditable(editor, clean, view.redraw);
  let likeliest = "";
  const rows = Array.from(get("code"), (_, j) => {
    const [state, bar, share] = [make("span", { "aria-hidden": "true" }), make("i"), make("b")];
    const button = makeButton("", () => set({ code: flipped(get("code"), j) }), {
      role: "switch",
      "aria-label": `bit ${j + 1}`,
    });
    button.append(`bit ${j + 1}`, state);
    return { state, bar, share, button, element: make("li", {}, button, make("div", {}, bar), share) };
  });
  const random = () => Array.from(rows, () => (Math.random() < 0.5 ? "0" : "1")).join("");
  const tools = make(
    "div",
    { class: "dvae-tools" },
    makeButton("Take over the most probable code", () => set({ code: likeliest })),
    makeButton("Random bits", () => set({ code: random() })),
    ...drawingButtons(set),
  );
  const note = make("p", { class: "dvae-note" });
  const legend = make(
    "p",
    { class: "dvae-legend" },
    swatch(`rgb(${EXTRA})`, "pixel too many"),
    swatch(`rgb(${MISSING})`, "pixel missing"),
  );
  const bits = make("ol", { class: "dvae-bits" }, ...rows.map(({ element }) => element));
  const pictures = make("div", { class: "dvae-three" }, ...[editor, map, binary].map(({ element }) => element));
  root.append(
    make("section", { class: "dvae-panel" }, makeTitle("switches, and probability of a 1"), bits),
    make("section", { class: "dvae-panel" }, pictures, note, legend, tools),
  );
  root.classList.add("dvae-pair", "dvae-code");
  dropDrawing({ model, get, set });
  return {
    traits: ["code", "row", "column", "drawing"],
    draw() {
      clean.read();
      editor.draw(clean.image);
      markCursor();
      const code = get("code");
      const shares = sigmoids(answer(encoder, clean.image));
      likeliest = Array.from(shares, (share) => (share >= 0.5 ? "1" : "0")).join("");
      rows.forEach(({ state, bar, share, button, element }, j) => {
        const on = code[j] === "1";
        button.setAttribute("aria-checked", on);
        state.textContent = on ? "1" : "0";
        bar.style.width = `${100 * shares[j]}%`;
        share.textContent = shares[j].toFixed(2);
        element.classList.toggle("dvae-other", code[j] !== likeliest[j]);
      });
      const logits = answer(decoder, Float32Array.from(code, Number));
      const probabilities = sigmoids(logits);
      map.draw(probabilities);
      binary.drawBinary(probabilities, clean.image);
      const others = rows.filter((_, j) => code[j] !== likeliest[j]).length;
      const nats = crossEntropy(logits, clean.image).toFixed(1);
      const wrong = wrongPixels(probabilities, clean.image);
      note.textContent =
        `Decoded: ${inWords(probabilities)}. Against the picture: ${wrong} wrong pixels of 576, ` +
        `cross-entropy ${nats} nats. Bits that differ from the most probable code: ${others}.`;
      say(`Code ${code}. ${note.textContent}`);
    },
  };
}

function noiseLevels({ get, set, root, sheets: layers, say }) {
  const clean = new Float32Array(PIXELS);
  const [noisy, shown] = [new Float32Array(PIXELS), new Float32Array(PIXELS)];
  const titles = ["clean square", "noisy, contrast lowered", "network", "exact posterior mean"];
  const pictures = titles.map((title) => makePicture(title));
  const [title, note] = [makeTitle(""), make("p", { class: "dvae-note" })];
  root.append(
    title,
    make("div", { class: "dvae-four" }, ...pictures.map(({ element }) => element)),
    note,
    make("div", { class: "dvae-tools" }, freshNoise({ get, set })),
  );
  root.classList.add("dvae-levels");
  return {
    traits: ["row", "column", "level", "seed"],
    draw() {
      const sigma = deviation(get("level"));
      paintSquare(get("row"), get("column"), clean);
      corrupt(3, sigma, clean, get("seed"), noisy);
      for (let i = 0; i < PIXELS; i++) shown[i] = 0.5 + (noisy[i] - 0.5) / (1 + 3 * sigma);
      const posterior = exactPosterior(noisy, sigma);
      const [found, mean] = [guess(layers, noisy, sigma), posteriorMean(posterior)];
      [clean, shown, found, mean].forEach((values, i) => pictures[i].draw(values));
      const truth = posterior[POSITIONS * get("row") + get("column")];
      const [ofNetwork, ofMean] = [found, mean].map((values) => squaredError(values, clean).toFixed(1));
      title.textContent = `noise of standard deviation ${sigma.toFixed(2)}`;
      note.textContent =
        `Exactly: the true square has the probability ` +
        `${truth.toFixed(3)}, and the choice is as open as among ${perplexity(posterior).toFixed(1)} squares. ` +
        `Squared error: network ${ofNetwork}, exact mean ${ofMean}; between the two ` +
        `${squaredError(found, mean).toFixed(1)}.`;
      say(`With ${title.textContent}. ${note.textContent}`);
    },
  };
}
