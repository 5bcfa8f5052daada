#!/usr/bin/env python3
"""What a coding agent writes, after a repository's history: one JSON line a case, for drafts_bench.

  edits_from_git.py REPOSITORY [COMMITS]

A case is the text in front of the model and the text it writes: `edit` (the file as it was, then each hunk as the
old and the new lines of a tool call), `rewrite` (the same file, whole, as it became), `new` (a file that was added,
after one beside it) and `prose` (a document of the last commit, after nothing).
"""

import json
import pathlib
import subprocess
import sys

KINDS = (".cc", ".h", ".cu", ".cuh", ".py", ".md", ".js", ".ts", ".go", ".rs", ".c", ".cpp", ".java")
MOST = 40_000  # characters of a file


def git(repository, *words):
    done = subprocess.run(["git", "-C", repository, *words], capture_output=True, check=False)
    return done.stdout.decode(errors="replace")


def call(path, old, new):
    return (f'<minimax:tool_call>\n<invoke name="str_replace">\n<parameter name="path">{path}</parameter>\n'
            f'<parameter name="old_str">{old}</parameter>\n<parameter name="new_str">{new}</parameter>\n'
            "</invoke>\n</minimax:tool_call>\n")


def hunks(repository, commit, path):
    """Each hunk as (old lines, new lines), with three lines around it."""
    old, new = [], []
    for line in git(repository, "show", "--format=", "-U3", commit, "--", path).splitlines():
        if line.startswith("@@"):
            if old or new:
                yield "\n".join(old), "\n".join(new)
            old, new = [], []
        elif line[:1] == " ":
            old.append(line[1:])
            new.append(line[1:])
        elif line[:1] == "-" and not line.startswith("---"):
            old.append(line[1:])
        elif line[:1] == "+" and not line.startswith("+++"):
            new.append(line[1:])
    if old or new:
        yield "\n".join(old), "\n".join(new)


def cases(repository, commit):
    subject = git(repository, "show", "-s", "--format=%s", commit).strip()
    for line in git(repository, "show", "--format=", "--name-status", commit).splitlines():
        status, _, path = line.partition("\t")
        if not path.endswith(KINDS):
            continue
        new = git(repository, "show", f"{commit}:{path}")
        if not new or len(new) > MOST:
            continue
        if status == "M":
            old = git(repository, "show", f"{commit}~1:{path}")
            prompt = f"{subject}\n\n{path}:\n{old}\n"
            edits = "".join(call(path, *hunk) for hunk in hunks(repository, commit, path))
            yield {"kind": "edit", "prompt": prompt, "output": edits}
            yield {"kind": "rewrite", "prompt": prompt, "output": new}
        elif status == "A":
            folder, suffix = str(pathlib.PurePosixPath(path).parent), pathlib.PurePosixPath(path).suffix
            beside = [name for name in git(repository, "ls-tree", "--name-only", f"{commit}~1", folder + "/").splitlines()
                      if name.endswith(suffix)]
            other = git(repository, "show", f"{commit}~1:{beside[0]}")[:MOST] if beside else ""
            yield {"kind": "new", "prompt": f"{subject}\n{beside[:1]}\n{other}\n", "output": new}


def main():
    repository, most = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "200"
    for commit in git(repository, "log", "--no-merges", "--format=%h", f"-{most}").split():
        for case in cases(repository, commit):
            print(json.dumps(case))
    for path in git(repository, "ls-files", "*.md").splitlines():
        print(json.dumps({"kind": "prose", "prompt": "", "output": git(repository, "show", f"HEAD:{path}")[:MOST]}))


if __name__ == "__main__":
    main()
