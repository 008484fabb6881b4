"""Live runs: sources of frames, the loop, sinks for the results, and supervision; `run.run_source` starts one."""
