def report_pruning(*args): pass
def pruning_table(rows): return [str(r) for r in rows]
def recommended(rows, aim): return len(rows)-1
