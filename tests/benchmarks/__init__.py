"""How fast is it? `python -m tests.benchmarks` measures, prints a table and writes benchmarks.json;
no test runs it.
"""
