"""Lists, checks, decodes and caches the image files of a folder."""
