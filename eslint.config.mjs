import js from "@eslint/js";
import globals from "globals";

export default [
  js.configs.recommended,
  {
    files: ["**/*.mjs", "_static/*.js"],
    rules: {
      "array-callback-return": "error",
      curly: ["error", "multi-line"],
      eqeqeq: "error",
      "max-len": ["error", { code: 120 }],
      "no-shadow": "error",
      "no-unused-vars": ["error", { argsIgnorePattern: "^_" }],
      "no-use-before-define": ["error", { functions: false, classes: false, variables: false }],
      "no-var": "error",
      "object-shorthand": "error",
      "prefer-const": "error",
      "prefer-template": "error",
    },
  },
  { files: ["dvae_lib/**/*.mjs"], languageOptions: { globals: globals.browser } },
  { files: ["_static/*.js"], languageOptions: { sourceType: "script", globals: globals.browser } },
  { files: ["tests/js/*.mjs"], languageOptions: { globals: globals.node } },
];
