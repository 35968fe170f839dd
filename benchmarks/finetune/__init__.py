"""Fine-tuning on small data: the recipe ``finetune`` against the loop that people write around smp's decoders."""
