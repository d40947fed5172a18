"""Other tools as techniques, so that they stand in the same table as ours.

They are plug-ins like a third party's: entry points of the group `compress.compressors`.
"""
