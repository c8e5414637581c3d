"""The names of the files of a model folder, and the largest size that vet reads."""

CONFIGURATION = 'configuration.json'
TENSORS = 'tuner.safetensors'
WEIGHTS = 'pytorch_model.pt'  # of ModelScope's folders
LARGEST_JSON = 16 * 2**20  # bytes
# The advice if a folder is not a model folder
FOLDERS = 'Give the output/ folder of a training run, or the folder that tuned.save(…) wrote.'
