"""The mirror to Weights & Biases: reads the store, and sends what the server does not have.

settings: which sweeps go to which project
run_record: what one run says of a stage
sync: what is new, what the server confirms, retry with back-off
wandb_process: the child process with wandb in it
wandb_report: tables and curves as a W&B report
background: the mirror beside a sweep command
command: `harness wandb`
"""
