/* Classify an image with an exported tree, through onnxruntime's C interface alone.

     python -m trunk_jax.export RUN --format onnx --out tree.onnx
     make -C examples/c && examples/c/classify tree.onnx image.ppm

   The image: binary PPM (colour) or PGM (grey), 8 bits, of the size that the tree takes. */

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ort.h"

static const OrtApi *ort;

static void fail(const char *what, const char *why) {
  fprintf(stderr, "classify: %s: %s\n", what, why);
  exit(2);
}

/* Ends the program with onnxruntime's reason if a call of it failed. */
static void check(OrtStatus *status) {
  if (status != NULL) fail("onnxruntime", ort->GetErrorMessage(status));
}

/* A whole number of a PNM header, past blanks and comments; -1 if there is none. */
static int number(FILE *file) {
  int c, value;
  while (isspace(c = getc(file)) || c == '#')
    if (c == '#')
      while ((c = getc(file)) != '\n' && c != EOF) continue;
  ungetc(c, file);
  return fscanf(file, "%d", &value) == 1 ? value : -1;
}

/* The pixels of a PPM or PGM file, which must be of this shape; uint8 [height, width, channels]. */
static unsigned char *read_image(const char *name, int64_t height, int64_t width, int64_t channels) {
  FILE *file = fopen(name, "rb");
  if (file == NULL) fail(name, "cannot be opened");
  int p = getc(file), kind = getc(file);
  int wide = number(file), high = number(file), most = number(file);
  if (p != 'P' || (kind != '5' && kind != '6') || most != 255)
    fail(name, "is no binary PPM or PGM with 8 bits");
  if (wide != width || high != height || (kind == '6' ? 3 : 1) != channels) {
    char wanted[120];
    snprintf(wanted, sizeof wanted, "the tree takes %d x %d pixels, %s", (int)width, (int)height,
             channels == 3 ? "colour (PPM, P6)" : "grey (PGM, P5)");
    fail(name, wanted);
  }
  getc(file); /* the one blank after the header */
  size_t size = (size_t)(height * width * channels);
  unsigned char *pixels = malloc(size);
  if (pixels == NULL || fread(pixels, 1, size, file) != size) fail(name, "ends too early");
  fclose(file);
  return pixels;
}

/* Prints entry `place` of a JSON list of texts. */
static void print_entry(const char *json, int64_t place) {
  for (const char *c = json; *c; c++) {
    if (*c != '"') continue;
    for (c++; *c && *c != '"'; c++) {
      if (*c == '\\' && c[1]) c++;
      if (place == 0) putchar(*c);
    }
    if (place-- == 0 || !*c) return;
  }
}

int main(int count, char **words) {
  if (count != 3) {
    fprintf(stderr, "usage: classify TREE.onnx IMAGE.ppm\n");
    return 2;
  }
  ort = OrtGetApiBase()->GetApi(ORT_API_VERSION);
  if (ort == NULL) fail("onnxruntime", "is too old");

  OrtEnv *env;
  OrtSessionOptions *options;
  OrtSession *session;
  check(ort->CreateEnv(ORT_LOGGING_LEVEL_WARNING, "classify", &env));
  check(ort->CreateSessionOptions(&options));
  check(ort->SetIntraOpNumThreads(options, 1));
  check(ort->CreateSession(env, words[1], options, &session));

  OrtTypeInfo *type;
  const OrtTensorTypeAndShapeInfo *tensor;
  int64_t shape[4]; /* batch (free), height, width, channels */
  size_t rank;
  check(ort->SessionGetInputTypeInfo(session, 0, &type));
  check(ort->CastTypeInfoToTensorInfo(type, &tensor));
  check(ort->GetDimensionsCount(tensor, &rank));
  if (rank != 4) fail(words[1], "is no exported tree");
  check(ort->GetDimensions(tensor, shape, 4));
  shape[0] = 1;
  unsigned char *pixels = read_image(words[2], shape[1], shape[2], shape[3]);

  OrtMemoryInfo *memory;
  OrtValue *image, *found[3] = {NULL, NULL, NULL};
  const char *inputs[] = {"image"}, *outputs[] = {"label", "probability", "path"};
  const OrtValue *given[1];
  check(ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
  check(ort->CreateTensorWithDataAsOrtValue(memory, pixels,
                                            (size_t)(shape[1] * shape[2] * shape[3]), shape, 4,
                                            ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, &image));
  given[0] = image;
  check(ort->Run(session, NULL, inputs, given, 1, outputs, 3, found));

  int64_t *label, *path;
  float *probability;
  check(ort->GetTensorMutableData(found[0], (void **)&label));
  check(ort->GetTensorMutableData(found[1], (void **)&probability));
  check(ort->GetTensorMutableData(found[2], (void **)&path));
  OrtTensorTypeAndShapeInfo *of_path;
  size_t depth;
  check(ort->GetTensorTypeAndShape(found[2], &of_path));
  check(ort->GetTensorShapeElementCount(of_path, &depth));

  OrtModelMetadata *about;
  OrtAllocator *allocator;
  char *classes = NULL;
  check(ort->SessionGetModelMetadata(session, &about));
  check(ort->GetAllocatorWithDefaultOptions(&allocator));
  check(ort->ModelMetadataLookupCustomMetadataMap(about, allocator, "classes", &classes));
  print_entry(classes ? classes : "", *label);
  printf(" %.4f path [", *probability);
  for (size_t step = 0; step < depth && path[step] >= 0; step++)
    printf("%s%d", step ? ", " : "", (int)path[step]);
  printf("]\n");
  return 0; /* the system takes everything back */
}
