"""Does the module help? Equal trainings of several arms over folds and seeds, and the page made from their logs.

python -m benchmarks.evidence run MATRIX --data DATA --out RUNS -j JOBS
python -m benchmarks.evidence page MATRIX ...
"""
