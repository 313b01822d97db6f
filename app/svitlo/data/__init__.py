"""Text in, shards out: sources → formats → conversations → tokenizer → shards → prepare."""
