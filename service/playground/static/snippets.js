// The request of the page, for a shell and for Python.

import { address } from "./service.js";

const PATH = "v1/audio/analyses";

/** One word of a POSIX shell, whatever is in it. */
const shellWord = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

/** Python reads JSON's strings as its own. */
const pythonString = (text) => JSON.stringify(text);

/** curl takes `,` and `;` in a file's name for itself, unless it is quoted in its own way too. */
function formFile(name) {
  if (/^[\w./ -]+$/.test(name)) return shellWord(`file=@${name}`);
  return shellWord(`file=@"${name.replaceAll("\\", "\\\\").replaceAll('"', '\\"')}"`);
}

export function curl(name, options, withKey) {
  const parts = ["curl --fail-with-body"];
  if (withKey) parts.push('-H "Authorization: Bearer $API_KEY"');
  for (const [option, value] of options) parts.push(`-F ${shellWord(`${option}=${value}`)}`);
  parts.push(`-F ${formFile(name)}`, shellWord(address(PATH)));
  return parts.join(" \\\n  ");
}

/** With the standard library alone: the file as the body, the options in the query. */
export function python(name, options, withKey) {
  const query = new URLSearchParams(options).toString().replaceAll("%2C", ","); // as good, and easier to read
  const url = `${address(PATH)}?${query}`;
  const bearer = withKey ? `\n        "Authorization": f"Bearer {os.environ['API_KEY']}",` : "";
  return `import json
${withKey ? "import os\n" : ""}import urllib.request
from pathlib import Path

request = urllib.request.Request(
    ${pythonString(url)},
    data=Path(${pythonString(name)}).read_bytes(),
    headers={
        "Content-Type": "application/octet-stream",${bearer}
    },
)
with urllib.request.urlopen(request) as answer:
    print(json.load(answer))
`;
}
