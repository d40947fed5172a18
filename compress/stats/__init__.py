"""Statistics: numpy in, numbers out. Nothing of ours is imported, and scipy only where it is used.

`proportions` and `calibration` judge one file's answers, `pairs` two files' answers to the same
items, `ratios` seconds, `control` the A/A control, `replication` several seeds; `multiplicity`
adjusts the p-values of a table's rows, and `verdicts` puts them into words.
"""
