"""The model behind a web page (`galip-hf app`) and behind an HTTP service (`galip-hf serve`)."""
