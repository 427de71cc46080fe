"""Training of a model on a budget, from the arguments of a run to its saved results.

arguments               `EffptTrainingArguments`: the stock arguments and a budget
trainer                 `EffptTrainer`: the stock Trainer with a clock and methods
  named, ticket_search  its subclasses for single methods and objectives
  checks                errors before training
  losses                arguments that change the loss
  start                   values that parameters of a new model begin with
preparing             what methods compute from the text before the first step
  callbacks             methods, clock and progress bar at each step
stream                  order of the rows, resumed by position
  phases                parts of a run with rows of rising lengths, and other settings that follow the clock
  next_tokens           what goes with a part of a run that learns next tokens
row_selection           rows chosen by methods for each step
  reference_models      frozen models that such methods compare with
optimization            AdamW without bias correction; learning rate by budget
  muon                  Muon for matrices beside AdamW for all else
  averaging             mean of the weights of a run, for its evaluation and export
  branches              models with decayed learning rate at parts of the budget
cost                    cost of steps and methods, charged to the clock
  timekeeping, energy   seconds and joules
  flops                 FLOPs of a step
  reference_time_meter, reference_time_keys, reference_time_table
                        seconds on a reference system
  meters                throughput, utilisation and time by part of a step
  carbon                `report_to: codecarbon`
evaluation_loop         logged metrics and held-out loss
checkpoints             checking, loading and saving of checkpoints; saving of the exported model
  stopping              a checkpoint at SIGTERM and SIGINT
  resuming              settings that change when a run is resumed
  rewinding             what a run saved after the checkpoint that it goes on from
  record                content of `run.json`
"""
