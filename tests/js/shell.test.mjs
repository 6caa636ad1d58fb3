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

test("the module offers what anywidget asks for", () => {
  assert.equal(typeof shell.default.render, "function");
  assert.equal(shell.render, undefined); // anywidget warns of a named one
});
