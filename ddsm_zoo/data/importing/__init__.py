"""Import of data sets that annotation tools export: one reader for each format, one writer for all."""
