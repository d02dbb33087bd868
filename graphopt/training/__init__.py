"""Training, differentiated and run through TVM: see `fit`. Imported when asked for, as it loads TVM."""
