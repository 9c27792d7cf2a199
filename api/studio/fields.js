/**
 * The fields of a spec that the form asks for beside prompt, lyrics and source. Bounds are the server's: what is
 * out of them is sent as typed, and refused in the server's words.
 *
 * `standard` is what an empty field stands for; `tasks` are those that read the field (all, where it is missing).
 *
 * @typedef {{name: string, kind: "number" | "text" | "seeds" | "words" | "numbers" | "choice" | "yes" | "share", group: string,
 *   standard?: string, choices?: readonly string[], tasks?: readonly string[], example?: string}} Field
 */

export const TASKS = ["text2music", "cover", "repaint", "extract", "lego", "complete"];
export const FORMATS = ["mp3", "wav", "flac", "ogg", "m4a"];
export const SECTIONS = ["Intro", "Verse", "Pre-Chorus", "Chorus", "Bridge", "Instrumental", "Outro"];
export const TRACKS = ["vocals", "backing_vocals", "drums", "bass", "guitar", "keyboard", "percussion", "strings",
  "synth", "fx", "brass", "woodwinds"];
export const VOICES = ["en", "ja", "zh", "ko", "es", "fr", "de", "it", "pt", "ru", "ar", "hi"];

/** @type {readonly Field[]} */
export const FIELDS = [
  { name: "duration_s", kind: "number", group: "main", tasks: ["text2music"] },
  { name: "variations", kind: "number", group: "main", standard: "1" },
  { name: "vocal_language", kind: "text", group: "main", choices: VOICES },
  { name: "cover_strength", kind: "share", group: "task", standard: "1", tasks: ["cover"] },
  { name: "repaint_start_s", kind: "number", group: "task", tasks: ["repaint", "lego"] },
  { name: "repaint_end_s", kind: "number", group: "task", tasks: ["repaint", "lego"] },
  { name: "track", kind: "text", group: "task", choices: TRACKS, tasks: ["extract", "lego"] },
  { name: "tracks", kind: "words", group: "task", example: "drums, bass", tasks: ["complete"] },
  { name: "bpm", kind: "number", group: "music" },
  { name: "key_scale", kind: "text", group: "music", example: "F# minor" },
  { name: "time_signature", kind: "text", group: "music", example: "4" },
  { name: "format", kind: "choice", group: "file", standard: "mp3", choices: FORMATS },
  { name: "bitrate_kbps", kind: "number", group: "file" },
  { name: "loudness_lufs", kind: "number", group: "file", example: "-14" },
  { name: "model", kind: "text", group: "sampling" },
  { name: "seed", kind: "seeds", group: "sampling" },
  { name: "steps", kind: "number", group: "sampling" },
  { name: "guidance_scale", kind: "number", group: "sampling" },
  { name: "shift", kind: "number", group: "sampling" },
  { name: "cfg_start", kind: "number", group: "sampling", standard: "0" },
  { name: "cfg_end", kind: "number", group: "sampling", standard: "1" },
  { name: "timesteps", kind: "numbers", group: "sampling", example: "1, 0.75, 0.5, 0.25" },
  { name: "lora", kind: "text", group: "sampling" },
  { name: "lora_scale", kind: "number", group: "sampling", standard: "1" },
  { name: "audio_codes", kind: "text", group: "sampling", tasks: ["text2music", "cover"] },
  { name: "rewrite", kind: "choice", group: "planner", choices: ["write", "format"], tasks: ["text2music"] },
  { name: "thinking", kind: "yes", group: "planner", choices: ["true"] },
  { name: "lm_seed", kind: "seeds", group: "planner" },
  { name: "lm_temperature", kind: "number", group: "planner" },
  { name: "lm_top_p", kind: "number", group: "planner" },
  { name: "lm_cfg_scale", kind: "number", group: "planner" },
  { name: "lane", kind: "choice", group: "job", standard: "normal", choices: ["high", "normal", "low"] },
];

/** The folds of the form, in order. */
export const GROUPS = ["planner", "music", "file", "sampling", "job"];

/**
 * Whether a task reads a field.
 *
 * @param {Field} field
 * @param {string} task
 */
export const reads = (field, task) => !field.tasks || field.tasks.includes(task);
