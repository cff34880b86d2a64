// A stand-in for a GPU, for a torch without CUDA: tensors of device `cuda` lie in host memory and are computed by the
// CPU's kernels, and an operation on tensors of two devices fails as it does on a GPU. Preloaded (LD_PRELOAD), so that
// torch finds it where it looks for a device; tests/on_stand_in_gpu.py does the same for Python.

#include <ATen/ATen.h>
#include <ATen/DeviceAccelerator.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/TensorShape.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <cstdlib>
#include <cstring>
#include <set>
#include <string>
#include <utility>
#include <vector>

using at::IntArrayRef;
using at::Tensor;
using c10::Device;
using c10::DeviceIndex;
using c10::Stream;

const Device GPU(c10::kCUDA, 0);
const c10::DispatchKeySet KEY(c10::DispatchKey::CUDA);

// --- the device: one, whose memory is the host's, and where all has happened once it is asked for ---------------------

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* place = bytes ? std::malloc(bytes) : nullptr;
    return {place, place, &std::free, GPU};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};
Memory memory;
REGISTER_ALLOCATOR(c10::kCUDA, &memory)

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static constexpr c10::DeviceType static_type = c10::kCUDA;
  static Stream only() { return Stream(Stream::DEFAULT, GPU); }
  c10::DeviceType type() const override { return c10::kCUDA; }
  Device exchangeDevice(Device) const override { return GPU; }
  Device getDevice() const override { return GPU; }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}
  Stream getStream(Device) const noexcept override { return only(); }
  Stream getDefaultStream(Device) const override { return only(); }
  Stream getNewStream(Device, int) const override { return only(); }
  Stream exchangeStream(Stream) const override { return only(); }
  DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void** event, const Stream&, const DeviceIndex, const c10::EventFlag) const override { *event = this_(); }
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const DeviceIndex) const override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const Stream&) const override {}

 private:
  void* this_() const { return const_cast<Guard*>(this); }  // an event is anything but null
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard)

namespace at {
struct CUDAHooks : CUDAHooksInterface {  // torch makes it by this name
  CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  int getNumGPUs() const override { return 1; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(DeviceIndex) const override {}
  DeviceIndex exchangeDevice(DeviceIndex) const override { return 0; }
  DeviceIndex maybeExchangeDevice(DeviceIndex) const override { return 0; }
  void deviceSynchronize(DeviceIndex) const override {}
  Allocator* getPinnedMemoryAllocator() const override { return GetAllocator(kCPU); }
};
REGISTER_CUDA_HOOKS(CUDAHooks)

// A torch without CUDA has left these out as it was compiled; what is preloaded goes before its own.
namespace accelerator {
std::optional<c10::DeviceType> getAccelerator(bool) { return kCUDA; }
bool isAccelerator(c10::DeviceType type) { return type == kCUDA; }
}  // namespace accelerator
}  // namespace at

// --- operations -------------------------------------------------------------------------------------------------------

Tensor on_cpu(const Tensor& tensor) {  // the same memory
  if (!tensor.defined() || !tensor.is_cuda()) return tensor;
  auto* start = static_cast<char*>(tensor.storage().mutable_data());
  auto* place = start ? start + tensor.storage_offset() * tensor.itemsize() : nullptr;
  auto options = at::TensorOptions().dtype(tensor.dtype()).device(c10::kCPU);
  return at::from_blob(place, tensor.sizes(), tensor.strides(), [tensor](void*) {}, options, Device(c10::kCPU));
}

Tensor empty_strided(
    IntArrayRef size, IntArrayRef stride, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
    std::optional<Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &memory, KEY, c10::dtype_or_default(dtype));
}

Tensor empty(
    IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>, std::optional<Device>,
    std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &memory, KEY, c10::dtype_or_default(dtype), format);
}

Tensor on_gpu(const Tensor& tensor) {  // a copy
  auto copied = empty_strided(tensor.sizes(), tensor.strides(), tensor.scalar_type(), {}, {}, {});
  on_cpu(copied).copy_(tensor);
  return copied;
}

Tensor& copy(Tensor& self, const Tensor& other, bool) {
  on_cpu(self).copy_(on_cpu(other));
  return self;
}

Tensor& set_storage(Tensor& self, c10::Storage storage, int64_t offset, IntArrayRef size, IntArrayRef stride) {
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(storage));
  self.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride, offset);
  return self;
}

Tensor& set_whole_storage(Tensor& self, c10::Storage storage) {
  const auto elements = static_cast<int64_t>(storage.nbytes() / self.itemsize());
  return set_storage(self, std::move(storage), 0, {elements}, {1});
}

Tensor& set_tensor(Tensor& self, const Tensor& other) {
  return set_storage(self, other.storage(), other.storage_offset(), other.sizes(), other.strides());
}

// Attention by its plain formula: there are no kernels here to choose from.
int64_t plain_attention(
    const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&, double, bool, std::optional<double>,
    bool) {
  return 0;
}

// Where a GPU too takes indices that lie on the CPU.
const std::set<std::string> MIXED = {"aten::index", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index"};

// Every other operation: by the CPU, on the same memory.
void by_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto count = schema.arguments().size();
  auto arguments = torch::jit::pop(*stack, count);
  std::vector<std::pair<Tensor, Tensor>> seen;  // ours, and the CPU's
  bool ours = false, foreign = false;

  auto lend = [&](const Tensor& tensor, bool is_written) {
    if (!tensor.defined() || !tensor.is_cuda()) {
      foreign |= tensor.defined() && tensor.dim() > 0;  // numbers may come from anywhere
      return tensor;
    }
    ours = true;
    for (auto& [own, lent] : seen)
      if (own.is_same(tensor)) return lent;
    // What is to be written and has no room yet gets it from the CPU.
    auto lent = is_written && !tensor.numel() ? at::empty(tensor.sizes(), tensor.scalar_type()) : on_cpu(tensor);
    seen.emplace_back(tensor, lent);
    return lent;
  };
  for (size_t i = 0; i < count; ++i) {
    auto& value = arguments[i];
    const auto* alias = schema.arguments()[i].alias_info();
    const bool is_written = alias && alias->isWrite();
    if (value.isTensor()) {
      value = lend(value.toTensor(), is_written);
    } else if (value.isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor& tensor : value.toTensorVector()) list.push_back(lend(tensor, is_written));
      value = list;
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> list;
      for (std::optional<Tensor> tensor : value.toOptionalTensorList())
        list.push_back(tensor ? std::optional(lend(*tensor, is_written)) : tensor);
      value = list;
    } else if (value.isDevice() && value.toDevice().is_cuda()) {
      value = Device(c10::kCPU);
    }
  }
  TORCH_CHECK(
      !(ours && foreign) || MIXED.count(schema.name()),
      "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! (",
      op.operator_name(), ")");
  torch::jit::Stack results(arguments.begin(), arguments.end());
  op.callBoxed(&results);

  auto take_back = [&](const Tensor& result) -> Tensor {
    if (!result.defined() || !result.is_cpu()) return result;
    for (auto& [own, lent] : seen)
      if (lent.is_same(result)) return own;
    for (auto& [own, lent] : seen)  // a view
      if (result.numel() && lent.numel() && result.storage().data() == lent.storage().data())
        return at::native::as_strided_tensorimpl(
            own, result.sizes(), result.strides(), own.storage_offset() + result.storage_offset());
    return on_gpu(result);
  };
  for (auto& [own, lent] : seen)
    if (own.sizes() != lent.sizes()) set_tensor(own, on_gpu(lent));  // it was given room
  for (auto& value : results) {
    if (value.isTensor()) {
      stack->push_back(take_back(value.toTensor()));
    } else if (value.isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor& tensor : value.toTensorVector()) list.push_back(take_back(tensor));
      stack->push_back(list);
    } else {
      stack->push_back(value);
    }
  }
}

TORCH_LIBRARY_IMPL(_, CUDA, library) { library.fallback(torch::CppFunction::makeFromBoxedFunction<&by_cpu>()); }

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  library.impl("empty.memory_format", &empty);
  library.impl("empty_strided", &empty_strided);
  library.impl("copy_", &copy);
  library.impl("set_.source_Storage_storage_offset", &set_storage);
  library.impl("set_.source_Storage", &set_whole_storage);
  library.impl("set_.source_Tensor", &set_tensor);
  library.impl("as_strided", &at::native::as_strided_tensorimpl);
  library.impl("view", &at::native::view);
  library.impl("_reshape_alias", &at::native::_reshape_alias);
  library.impl("unfold", &at::native::unfold);
  library.impl("_fused_sdp_choice", &plain_attention);
}
