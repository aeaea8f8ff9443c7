"""The faults that can be rehearsed, a family a module; the table of them is `runner.simulator.faults`."""
