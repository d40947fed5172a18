"""Statistics: numpy in, numbers out. Nothing of ours is imported, and scipy only where it is used.

`proportions` judges one file's answers, `pairs` two files' answers to the same items, `ratios`
seconds, `control` the A/A control, `replication` several seeds; `verdicts` adjusts the p-values of
a table's rows and puts them into words.
"""
