"""The styles of the HTML report: system fonts, one column that narrows, colours for light and for dark."""

from __future__ import annotations

STYLE = """\
:root {
  --paper: #ffffff; --ink: #1f2328; --soft: #59636e; --line: #d1d9e0; --block: #f6f8fa;
  --pass: #1a7f37; --fail: #cf222e; --error: #8250df; --skip: #9a6700; --ins: #dafbe1; --del: #ffebe9;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #0d1117; --ink: #e6edf3; --soft: #9198a1; --line: #3d444d; --block: #161b22;
    --pass: #3fb950; --fail: #f85149; --error: #ab7df8; --skip: #d29922; --ins: #12341f; --del: #4a1a1f;
  }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
h1 { margin: 0; font-size: 1.5rem; overflow-wrap: anywhere; }
h2 { margin: 1.6rem 0 .5rem; font-size: .95rem; font-weight: 600; overflow-wrap: anywhere; }
h3 { margin: 1rem 0 .3rem; font-size: .8rem; font-weight: 600; color: var(--soft); }
header p { margin: .1rem 0 1rem; color: var(--soft); overflow-wrap: anywhere; }
.bar { display: flex; gap: 2px; height: 8px; margin-bottom: 1rem; }
.bar i { min-width: 6px; flex-basis: 0; border-radius: 2px; }
.bar .pass { background: var(--pass); } .bar .fail { background: var(--fail); }
.bar .error { background: var(--error); } .bar .skip { background: var(--skip); }
.pass { --own: var(--pass); } .fail { --own: var(--fail); }
.error { --own: var(--error); } .skip { --own: var(--skip); }
input[name=show] { position: absolute; opacity: 0; pointer-events: none; }
nav { display: flex; flex-wrap: wrap; gap: .4rem; }
label { padding: .2rem .7rem; border: 1px solid var(--line); border-radius: 1rem; color: var(--own, var(--ink));
  cursor: pointer; font-size: .9rem; }
#show-all:checked ~ nav [for=show-all], #show-pass:checked ~ nav [for=show-pass],
#show-fail:checked ~ nav [for=show-fail], #show-error:checked ~ nav [for=show-error],
#show-skip:checked ~ nav [for=show-skip] { background: var(--own, var(--ink)); border-color: var(--own, var(--ink));
  color: var(--paper); }
input:focus-visible ~ nav { outline: 2px solid var(--soft); outline-offset: 3px; border-radius: 1rem; }
#show-pass:checked ~ main :is(section, .test):not(.pass), #show-fail:checked ~ main :is(section, .test):not(.fail),
#show-error:checked ~ main :is(section, .test):not(.error),
#show-skip:checked ~ main :is(section, .test):not(.skip) { display: none; }
.test { margin: .4rem 0; border: 1px solid var(--line); border-left: 4px solid var(--own); border-radius: 6px; }
summary { display: flex; flex-wrap: wrap; align-items: baseline; gap: 0 .7rem; padding: .5rem .8rem; cursor: pointer;
  list-style: none; }
summary::-webkit-details-marker { display: none; }
summary:hover { background: var(--block); }
.status { flex: none; min-width: 4rem; color: var(--own); font-size: .85rem; font-weight: 600; }
.name { flex: 1 1 12rem; min-width: 0; overflow-wrap: anywhere; font-weight: 500; }
.score { flex: none; color: var(--soft); font-size: .85rem; font-variant-numeric: tabular-nums; }
.tag { margin-left: .5rem; padding: 0 .45rem; border: 1px solid var(--line); border-radius: 1rem; color: var(--soft);
  font-size: .75rem; font-weight: 400; white-space: nowrap; }
.reason { flex: 1 0 100%; margin: .15rem 0 0; color: var(--soft); font-size: .9rem; overflow-wrap: anywhere; }
.body { padding: 0 .8rem .6rem; border-top: 1px solid var(--line); }
dl { display: grid; grid-template-columns: minmax(4rem, max-content) minmax(0, 1fr); gap: .25rem .8rem; margin: 0; }
dt { padding-top: .2rem; color: var(--soft); font-size: .85rem; overflow-wrap: anywhere; max-width: 12rem; }
dd { margin: 0; min-width: 0; }
pre { margin: 0; padding: .25rem .5rem; background: var(--block); border-radius: 4px; white-space: pre-wrap;
  overflow-wrap: anywhere; font: .85rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; }
.empty { color: var(--soft); font-style: italic; }
.checks { margin: 0; padding: 0; list-style: none; }
.checks li { margin: .4rem 0 0; padding: .1rem 0 .1rem .7rem; border-left: 2px solid var(--own); }
.checks p { margin: 0 0 .2rem; overflow-wrap: anywhere; }
.diff :is(del, ins, span) { display: block; margin: 0 -.5rem; padding: 0 .5rem; min-height: 1.5em; }
.diff span { color: var(--soft); }
del { background: var(--del); text-decoration: none; } ins { background: var(--ins); text-decoration: none; }
.legend { font-size: .8rem; } .legend :is(del, ins) { padding: 0 .4rem; border-radius: 3px; }
.where { margin: .8rem 0 0; color: var(--soft); font-size: .8rem; overflow-wrap: anywhere; }
@media (max-width: 36rem) { dl { grid-template-columns: minmax(0, 1fr); } dt { padding-top: .4rem; } }
@media print { nav { display: none; } .test { break-inside: avoid; } }
"""
