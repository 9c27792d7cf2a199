// What reads text as markup or as code is banned: the page shows what strangers wrote.
const banned = ["innerHTML", "outerHTML", "insertAdjacentHTML", "setHTMLUnsafe", "createContextualFragment", "srcdoc"];

export default [
  { ignores: ["tests/browser/build/"] },
  {
    files: ["**/*.js", "**/*.mjs"],
    linterOptions: { reportUnusedDisableDirectives: "error" },
    rules: {
      "no-restricted-properties": ["error", ...banned.map((property) => ({ property })),
        { object: "document", property: "write" }, { object: "document", property: "writeln" }],
      "no-eval": "error", "no-implied-eval": "error", "no-new-func": "error", "no-script-url": "error",
      "no-undef-init": "error", "no-unused-vars": "error", "no-var": "error", "prefer-const": "error",
      eqeqeq: "error", "no-shadow": "error", "no-unreachable": "error", "no-self-assign": "error",
      "max-len": ["error", { code: 140, ignoreStrings: true, ignoreTemplateLiterals: true }],
    },
  },
];
