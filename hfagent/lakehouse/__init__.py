"""Datasets as Delta tables on a local file system: written so that neither a kill nor a power cut loses or doubles a row.

delta-rs writes the log, we write the data files; what makes the pair safe is in `table.py` (order and identity of commits)
and `recovery.py` (what a power cut leaves behind). pyarrow and deltalake are imported inside the functions.
"""
