"""What rankings are: records, notation, comparisons, the store, import and export."""
