// Max pooling on the CPU, for inference, as a torch operator. The schema is defined in Python
// (sparsekernels/ops/max_pool2d/operators.py).
#include <algorithm>

#include "cpu/kernels.h"
#include "max_pool2d_glue.h"

namespace sparsekernels {
namespace {

void boxed_max_pool2d(StableIValue* stack, uint64_t, uint64_t) {
  Arguments arguments(stack);
  const Handle input = arguments.tensor();
  MaxPool2d call = pooling_of(arguments.integers());
  require(input.dim() == 4 && input.is_contiguous(), "input: accepted are 4 dimensions without gaps");
  call.dtype = dtype_of(input);
  require(call.dtype != DType::kFloat64, "input: accepted are float32, bfloat16 and float16");
  const int64_t* const sizes = input.sizes();
  int64_t dest_sizes[4] = {sizes[0], sizes[1], 0, 0};
  for (size_t d = 0; d < 2; ++d) {
    call.source_size[d] = sizes[2 + d];
    const int64_t room = call.source_size[d] + 2 * call.padding[d] - call.window[d];
    require(call.source_size[d] > 0 && room >= 0, "input: accepted is one that the window fits into");
    dest_sizes[2 + d] = call.dest_size[d] = room / call.stride[d] + 1;
  }
  Handle output = empty(dest_sizes, 4, input.dtype(), input);
  call.source = input.data();
  call.dest = output.data();
  call.source_channel = call.source_size[0] * call.source_size[1];
  call.dest_channel = call.dest_size[0] * call.dest_size[1];
  call.channels = std::max<int64_t>(1, sizes[1]);
  call.source_image = call.channels * call.source_channel;
  call.dest_image = call.channels * call.dest_channel;
  const int64_t planes = sizes[0] * sizes[1], floats = std::max<int64_t>(1, call.source_size[0] * call.source_size[1]);
  constexpr int64_t kGrain = 1 << 15;
  torch::stable::parallel_for(0, planes, std::max<int64_t>(1, kGrain / floats), [&](int64_t begin, int64_t end) {
    std::vector<float> row(static_cast<size_t>(call.row_floats()));
    cpu_kernels().max_pool2d(call, row.data(), begin, end);
  });
  stack[0] = to_stack(std::move(output));
}

}  // namespace
}  // namespace sparsekernels

STABLE_TORCH_LIBRARY_IMPL(sparsekernels, CPU, m) {
  m.impl("_max_pool2d", &sparsekernels::boxed_max_pool2d);
}
