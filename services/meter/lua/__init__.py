"""The scripts that run inside Redis: one file a verb, `common.lua` in front of each."""
