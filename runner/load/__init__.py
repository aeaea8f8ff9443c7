"""Load testing: the same engine as a load generator whose figures can be trusted.

Where things are, in the order in which a test passes:

| stage | modules |
| --- | --- |
| asked | command, options, slo, spec (one level), run (the whole test) |
| folder | store, knock (does anybody listen?), budget (`--max-cost`) |
| what is sent | workload, reading, prompts, synthetic, sharegpt, conversations, draws (lengths by chance) |
| when | arrivals, traces, pacer |
| this machine | calibrate, nullserver, verdict |
| sending | crew (one process or several: processes), engine (a process), sender (a level), ledger, free |
| measuring | stamps, samples (a request), level, timeline, quantiles |
| the server's own gauges | scraping, scrape |
| deciding | search, noise, repeats |
| results | assemble, results (load.json), definitions (every metric's name and meaning) |
| shown | view (live), table, html with page, details, panels, chart, markup; sheet (CSV), export, figures |
| two tests | compare |

`python -m runner.load` is one process of `--workers`, not for people.
"""
