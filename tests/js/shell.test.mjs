// What the page's address says of the explorers: written, read back, and read with nonsense in it.

import assert from "node:assert/strict";
import { test } from "node:test";

import * as shell from "../../dvae_lib/widgets/shell.mjs";
import { uniforms } from "../../dvae_lib/widgets/widgets.mjs";

const { readPart, withPart, readValue, readSettings, writeSettings } = shell;
const SCHEMA = {
  row: { type: "integer", minimum: 0, maximum: 15 },
  level: { type: "number", minimum: 0, maximum: 0.5 },
  z1: { type: "number", minimum: -4, maximum: 4 },
  dots: { type: "boolean" },
  drawing: { type: "string", pattern: "([0-9a-f]{144})?" },
  text: { type: "string", pattern: "[^]*" },
};
const STORED = { row: 4, level: 0.1, z1: 0.6, dots: true, drawing: "", text: "as it comes" };
const uniform = uniforms(11);
const below = (n) => Math.floor(n * uniform());
const letters = (alphabet, length) => Array.from({ length }, () => alphabet[below(alphabet.length)]).join("");
const ODD = [..."abc019.,:;&=#%+-_/?! \n\u00e4\u{1f600}e", "%25", "true", "row:", "__proto__", "denoise="];

const randomValues = () => ({
  row: below(16),
  level: uniform() < 0.5 ? below(51) / 100 : uniform() / 2,
  z1: 8 * uniform() - 4,
  dots: uniform() < 0.5,
  drawing: uniform() < 0.5 ? "" : letters("0123456789abcdef", 144),
  text: letters(ODD, below(12)),
});

test("what is written is read back, whatever else the address says", () => {
  for (let i = 0; i < 2000; i++) {
    const values = { ...STORED, ...Object.fromEntries(Object.entries(randomValues()).filter(() => uniform() < 0.5)) };
    const before = ["", "#a-heading", "#a-heading&denoise-2=row:3", "#denoise=row:2,level:0.3&hide=controls"][below(4)];
    const hash = withPart(before, "denoise", writeSettings(values, STORED, SCHEMA));
    const found = { ...STORED, ...readSettings(readPart(hash, "denoise"), SCHEMA) };
    for (const [name, value] of Object.entries(values)) {
      const close = typeof value === "number" && Math.abs(found[name] - value) < 1e-11;
      assert.ok(close || found[name] === value, `${name}: ${value} became ${found[name]} by way of ${hash}`);
    }
    assert.match(hash, /^#[\w&=:,.%*!'()~-]+$/); // nothing that a browser would write in another way
    assert.equal(readPart(hash, "denoise-2"), readPart(before, "denoise-2"));
    assert.equal(shell.hidesControls(hash), shell.hidesControls(before));
    assert.ok(!before.startsWith("#a-heading") || hash.startsWith("#a-heading&"));
  }
});

test("only what differs is written", () => {
  assert.equal(writeSettings(STORED, STORED, SCHEMA), "");
  assert.equal(writeSettings({ ...STORED, level: 0.1 + 1e-17, z1: 0.6000000000000001 }, STORED, SCHEMA), "");
  assert.equal(writeSettings({ ...STORED, level: 0.30000000000000004, row: 0 }, STORED, SCHEMA), "row:0,level:0.3");
  assert.equal(withPart("#a-heading&denoise=row:3", "denoise", null), "#a-heading");
  assert.equal(withPart("#denoise=row:3", "denoise", null), "");
  assert.equal(withPart("", "denoise", ""), "#denoise=");
});

test("a key that is the start of another is another", () => {
  assert.equal(readPart("#denoise-2=row:3", "denoise"), null);
  assert.equal(withPart("#denoise-2=row:3", "denoise", "row:4"), "#denoise-2=row:3&denoise=row:4");
});

test("nonsense is never read as a value, and never an error", () => {
  for (let i = 0; i < 20000; i++) {
    const hash = `#${letters([...ODD, "denoise=", "level:0.2", "row:3", "z1:-1e9"], below(20))}`;
    const found = readSettings(readPart(hash, "denoise"), SCHEMA);
    for (const [name, value] of Object.entries(found)) {
      const { type, minimum, maximum } = SCHEMA[name];
      assert.equal(typeof value, type === "integer" ? "number" : type);
      if (typeof value === "number") assert.ok(value >= minimum && value <= maximum);
      if (type === "integer") assert.ok(Number.isInteger(value));
    }
    assert.equal(typeof shell.hidesControls(hash), "boolean");
  }
});

test("each type takes what it should and nothing else", () => {
  const [row, level] = [SCHEMA.row, SCHEMA.level];
  const taken = [["3", row, 3], ["15", row, 15], ["0", row, 0], ["0.25", level, 0.25], ["5e-2", level, 0.05]];
  for (const [text, schema, value] of taken) assert.equal(readValue(text, schema), value);
  const refused = ["-1", "16", "3.5", "", " 3", "3 ", "0x3", "NaN", "Infinity", "1e99", "3,", "--3", "\u0663"];
  for (const text of refused) assert.equal(readValue(text, row), undefined, text);
  for (const text of ["0.51", "-0.1", ".", "1e-", "0.2.1"]) assert.equal(readValue(text, level), undefined, text);
  for (const text of ["True", "1", "constructor", ""]) assert.equal(readValue(text, SCHEMA.dots), undefined, text);
  assert.equal(readValue("false", SCHEMA.dots), false);
  for (const text of ["f".repeat(143), "f".repeat(145), "g".repeat(144), `${"f".repeat(144)}\n`]) {
    assert.equal(readValue(text, SCHEMA.drawing), undefined);
  }
  assert.deepEqual(readSettings("constructor:1,toString:2,row:9", SCHEMA), { row: 9 });
});

test("an address that was encoded on its way is understood", () => {
  assert.deepEqual(readSettings(readPart("#denoise=row%3A3%2Clevel%3A0.2", "denoise"), SCHEMA), { row: 3, level: 0.2 });
  assert.equal(readPart("#denoise=%E4%ZZ", "denoise"), null);
});

test("an address is about the first explorer that it names", () => {
  assert.equal(shell.firstNamed("#hide=controls&denoise-2=&denoise=row:3"), "denoise-2");
  assert.equal(shell.firstNamed("#a-heading&hide=controls&denoise-2=&denoise=row:3"), undefined);
  assert.equal(shell.firstNamed("#a-heading&hide=controls"), undefined);
  assert.ok(shell.hidesControls("#a-heading&hide=controls"));
  assert.ok(!shell.hidesControls("#controls&hide=all"));
});

const BOX = { x: 100, y: 50, width: 40, height: 20, left: 100, top: 50, right: 140, bottom: 70 };

test("a shadow is painted if it is an even line", () => {
  const frame = shell.shadowOf("rgb(213, 94, 0) 0px 0px 0px 2px");
  assert.deepEqual(frame, { colour: "rgb(213, 94, 0)", width: 2, inside: false });
  const inset = shell.shadowOf("color(srgb 0 0 0 / 0.25) 0px 0px 0px 1.5px inset");
  assert.deepEqual(inset, { colour: "color(srgb 0 0 0 / 0.25)", width: 1.5, inside: true });
  for (const other of ["none", "rgb(0, 0, 0) 0px 1px 0px 2px", "rgb(0, 0, 0) 0px 0px 3px 0px"]) {
    assert.equal(shell.shadowOf(other), undefined);
  }
});

test("of a border the sides that have a width are painted, each along its own edge", () => {
  const none = { Width: "0px", Style: "none", Color: "rgb(0, 0, 0)" };
  const dashed = { Width: "1.5px", Style: "dashed", Color: "rgb(1, 2, 3)" };
  const sides = { Top: dashed, Right: none, Bottom: none, Left: { ...none, Width: "3px", Style: "solid" } };
  const style = {};
  for (const [side, values] of Object.entries(sides)) {
    for (const [name, value] of Object.entries(values)) style[`border${side}${name}`] = value;
  }
  assert.deepEqual(shell.bordersOf(style), [
    { side: "Top", width: 1.5, dashed: true, colour: "rgb(1, 2, 3)" },
    { side: "Left", width: 3, dashed: false, colour: "rgb(0, 0, 0)" },
  ]);
  assert.deepEqual(shell.edgeOf(BOX, "Top", 2), [100, 51, 140, 51]);
  assert.deepEqual(shell.edgeOf(BOX, "Right", 2), [139, 50, 139, 70]);
  assert.deepEqual(shell.edgeOf(BOX, "Bottom", 2), [100, 69, 140, 69]);
  assert.deepEqual(shell.edgeOf(BOX, "Left", 3), [101.5, 50, 101.5, 70]);
});

test("a polygon has its corners in lengths or in shares of the box", () => {
  assert.deepEqual(shell.polygonOf("polygon(0px 7px, 12.5% 0px, 100% 100%)", BOX), [[100, 57], [105, 50], [140, 70]]);
  for (const other of ["none", "inset(50%)"]) assert.deepEqual(shell.polygonOf(other, BOX), []);
});

test("a gradient has stops, and a line from the first corner that it reaches to the last", () => {
  const [light, clear] = ["rgba(255, 255, 255, 0.28)", "rgba(0, 0, 0, 0)"];
  const stops = [[light, 0], [light, 2], [clear, 2], [clear, 8]];
  const long = `repeating-linear-gradient(45deg, ${light} 0px, ${light} 2px, ${clear} 2px, ${clear} 8px), none`;
  assert.deepEqual(shell.stopsOf(long), stops);
  assert.deepEqual(shell.stopsOf(`repeating-linear-gradient(45deg, ${light} 0px 2px, ${clear} 2px 8px)`), stops);
  assert.deepEqual(shell.stopsOf("none, none"), []);
  const round = (point) => point.map((value) => Math.round(1e6 * value) / 1e6);
  const lines = { 0: [[120, 70], [120, 50]], 90: [[100, 60], [140, 60]], 45: [[105, 75], [135, 45]] };
  for (const [degrees, [from, to]] of Object.entries({ ...lines, "-45": [[135, 75], [105, 45]] })) {
    const found = shell.gradientLine(Number(degrees), BOX);
    assert.deepEqual([round(found.from), round(found.to)], [from, to]);
    const length = Math.hypot(to[0] - from[0], to[1] - from[1]);
    assert.ok(Math.abs(found.length - length) < 1e-9);
  }
});

test("the module offers what anywidget asks for", () => {
  assert.equal(typeof shell.default.render, "function");
  assert.equal(shell.render, undefined); // anywidget warns of a named one
});
