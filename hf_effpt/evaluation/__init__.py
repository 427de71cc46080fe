"""Measures of a model: held-out loss, BLiMP, fine-tuning; and pruning of layers, which uses the loss.

suite                 `evaluate`: all measures as one record and one table
results_file          the file those records are kept in
stock_checkpoint      checks and loading of stock checkpoints
held_out_text         held-out rows of a run, and a model's loss on them
held_out_loss         loss over masked tokens, and the unigram floor
masked_logits         logits at masked positions only
blimp                 accuracy on minimal pairs, and the loading of their files
finetuning_plan       fine-tuning by a protocol, checked before it starts
  protocols           published settings, seeds and averages
  tasks, table_files  labelled tasks; readers of their files
  finetune, lora      one seed of one task; low-rank adapters
  glue_metrics        accuracy, F1, MCC, correlations
document_scores       selection of documents by a stock model
pruning               `prune_layers`; the same for a run's folder
  layer_choice        layers by held-out loss, or by learned scores
"""
