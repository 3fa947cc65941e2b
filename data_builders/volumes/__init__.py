"""Reading CT volumes of hospitals and archives: values, an affine and remarks, or a refusal."""
