"""Packed rows in shards, which many processes or machines make, and runs read as one dataset.

opening      `open_rows`: shards as one memory-mapped dataset
pieces       files and ranges of rows that a corpus can be cut into
plan         settings and tasks of a packing, in its folder
steps        datatrove's steps: text to tokens, held-out documents, tokens to rows, manifest
executors    datatrove's executors: local processes, Slurm, Ray
packing      `pack_shards`
"""
