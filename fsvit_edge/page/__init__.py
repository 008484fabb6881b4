"""The page of a run, http://127.0.0.1:8080: what the camera sees, and enrollment from the browser. Needs `[web]`."""
