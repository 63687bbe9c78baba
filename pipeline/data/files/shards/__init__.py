"""Lists images in tar files (WebDataset) and in Parquet files, and fetches such shards from an address."""
