"""The op `attention_packed`."""
