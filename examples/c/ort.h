/* The part of onnxruntime's C interface that classify.c uses, by the names of its own header,
   onnxruntime_c_api.h, which comes with its releases for developers but not with Python's package.

   The interface is one table of functions. Entries are only ever added at its end, so each keeps
   its place, and can be called without those before it being known. */

#ifndef TRUNK_ORT_H
#define TRUNK_ORT_H

#include <stddef.h>
#include <stdint.h>

#define ORT_API_VERSION 2 /* of 2020: every onnxruntime since gives it */

typedef struct OrtStatus OrtStatus;
typedef struct OrtEnv OrtEnv;
typedef struct OrtSession OrtSession;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtRunOptions OrtRunOptions;
typedef struct OrtMemoryInfo OrtMemoryInfo;
typedef struct OrtModelMetadata OrtModelMetadata;
typedef struct OrtTypeInfo OrtTypeInfo;
typedef struct OrtTensorTypeAndShapeInfo OrtTensorTypeAndShapeInfo;
typedef struct OrtValue OrtValue;
typedef struct OrtAllocator OrtAllocator;

enum { ORT_LOGGING_LEVEL_WARNING = 2 };
enum { OrtArenaAllocator = 1, OrtMemTypeDefault = 0 };
enum { ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 = 2 };

#define SKIP(first, next) void *from_##first[(next) - (first)]
typedef struct OrtApi {
  SKIP(0, 2);
  const char *(*GetErrorMessage)(const OrtStatus *);                                      /* 2 */
  OrtStatus *(*CreateEnv)(int level, const char *name, OrtEnv **);                        /* 3 */
  SKIP(4, 7);
  OrtStatus *(*CreateSession)(const OrtEnv *, const char *file, const OrtSessionOptions *,
                              OrtSession **);                                             /* 7 */
  SKIP(8, 9);
  OrtStatus *(*Run)(OrtSession *, const OrtRunOptions *, const char *const *input_names,
                    const OrtValue *const *inputs, size_t, const char *const *output_names,
                    size_t, OrtValue **outputs);                                          /* 9 */
  OrtStatus *(*CreateSessionOptions)(OrtSessionOptions **);                              /* 10 */
  SKIP(11, 24);
  OrtStatus *(*SetIntraOpNumThreads)(OrtSessionOptions *, int);                          /* 24 */
  SKIP(25, 33);
  OrtStatus *(*SessionGetInputTypeInfo)(const OrtSession *, size_t, OrtTypeInfo **);     /* 33 */
  SKIP(34, 49);
  OrtStatus *(*CreateTensorWithDataAsOrtValue)(const OrtMemoryInfo *, void *, size_t bytes,
                                               const int64_t *shape, size_t rank, int type,
                                               OrtValue **);                             /* 49 */
  SKIP(50, 51);
  OrtStatus *(*GetTensorMutableData)(OrtValue *, void **);                               /* 51 */
  SKIP(52, 55);
  OrtStatus *(*CastTypeInfoToTensorInfo)(const OrtTypeInfo *,
                                         const OrtTensorTypeAndShapeInfo **);            /* 55 */
  SKIP(56, 61);
  OrtStatus *(*GetDimensionsCount)(const OrtTensorTypeAndShapeInfo *, size_t *);         /* 61 */
  OrtStatus *(*GetDimensions)(const OrtTensorTypeAndShapeInfo *, int64_t *, size_t);     /* 62 */
  SKIP(63, 64);
  OrtStatus *(*GetTensorShapeElementCount)(const OrtTensorTypeAndShapeInfo *, size_t *); /* 64 */
  OrtStatus *(*GetTensorTypeAndShape)(const OrtValue *, OrtTensorTypeAndShapeInfo **);   /* 65 */
  SKIP(66, 69);
  OrtStatus *(*CreateCpuMemoryInfo)(int allocator, int kind, OrtMemoryInfo **);          /* 69 */
  SKIP(70, 78);
  OrtStatus *(*GetAllocatorWithDefaultOptions)(OrtAllocator **);                         /* 78 */
  SKIP(79, 111);
  OrtStatus *(*SessionGetModelMetadata)(const OrtSession *, OrtModelMetadata **);       /* 111 */
  SKIP(112, 116);
  OrtStatus *(*ModelMetadataLookupCustomMetadataMap)(const OrtModelMetadata *, OrtAllocator *,
                                                     const char *key, char **);         /* 116 */
} OrtApi;
#undef SKIP

typedef struct OrtApiBase {
  const OrtApi *(*GetApi)(uint32_t version);
  const char *(*GetVersionString)(void);
} OrtApiBase;

const OrtApiBase *OrtGetApiBase(void);

#endif
