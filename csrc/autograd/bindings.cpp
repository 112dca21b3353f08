// A loss in one call from Python: an operator that gives (loss, gradient, ...), and the gradient attached to the loss.
//
// It does what `loss_with_gradient` in tfkd_fast/ops/losses.py does, for eager calls on the processor, in less time.
// Nodes of torch's autograd have no stable ABI: this Python module serves the torch that it was compiled against,
// and Python takes its own way with any other.

#include <ATen/EmptyTensor.h>
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/eq.h>
#include <ATen/ops/mul.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace tfkd_fast {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// `NoSecondDerivative` of tfkd_fast/ops/fused.py.
struct NoSecondDerivative : torch::autograd::Function<NoSecondDerivative> {
  static Tensor forward(AutogradContext*, const Tensor& gradient, const Tensor& /*input*/) {
    return gradient.view_as(gradient);
  }
  static variable_list backward(AutogradContext*, const variable_list&) {
    throw std::runtime_error("this backend has no second derivative: use backend=\"reference\"");
  }
};

template <typename T>
bool begins_with_one(const Tensor& tensor) {
  return *tensor.const_data_ptr<T>() == T(1);
}

bool is_all_ones(const Tensor& upstream) {
  if (at::isTensorSubclassLike(upstream) || upstream._fw_grad(0).defined() || upstream.numel() == 0) return false;
  for (int64_t axis = 0; axis < upstream.dim(); ++axis) {
    if (upstream.size(axis) > 1 && upstream.stride(axis) != 0) return upstream.eq(1).all().item<bool>();
  }
  return upstream.scalar_type() == at::kDouble ? begins_with_one<double>(upstream) : begins_with_one<float>(upstream);
}

Tensor scaled(const Tensor& gradient, const Tensor& upstream) {
  if (is_all_ones(upstream)) return gradient;  // what `loss.backward()` sends
  auto shape = upstream.sym_sizes().vec();
  shape.resize(gradient.dim(), 1);
  return at::mul(gradient, upstream.reshape_symint(shape)).to(gradient.scalar_type());
}

// `_AttachLossGradient` of tfkd_fast/ops/losses.py.
struct AttachLossGradient : torch::autograd::Function<AttachLossGradient> {
  static Tensor forward(AutogradContext* context, const Tensor& logits, const Tensor& loss, const Tensor& gradient) {
    context->save_for_backward({logits, gradient});
    return loss;
  }
  static variable_list backward(AutogradContext* context, const variable_list& upstream) {
    const variable_list saved = context->get_saved_variables();
    const Tensor &logits = saved[0], &gradient = saved[1];
    Tensor result = scaled(gradient, upstream[0]);
    if (at::GradMode::is_enabled()) result = NoSecondDerivative::apply(result, logits);  // create_graph=True
    return {result, Tensor(), Tensor()};
  }
};

// No transform, tracer or mode sees the calls of this thread.
bool is_eager() {
  const auto added = c10::impl::tls_local_dispatch_key_set().included_ - c10::default_included_set;
  return added.empty() && !at::impl::torch_function_mode_enabled() && !c10::impl::dispatch_mode_enabled();
}

class LossOperator {
 public:
  explicit LossOperator(const std::string& name)
      : operator_(c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), "")) {}

  // The arguments of the operator, but numbers where it takes a temperature or a weight as a tensor. The results are
  // those of the operator without the gradient, which is attached to the loss. None for a call that is not simple, or
  // that the operator refuses: Python then takes its own way, and says what is wrong in words.
  py::object operator()(const py::args& arguments) const {
    std::vector<c10::IValue> stack;
    if (!is_eager() || !read(arguments, stack)) return py::none();
    const Tensor logits = stack[0].toTensor();
    try {
      const py::gil_scoped_release others_may_run;
      {
        const at::AutoDispatchBelowAutograd guard;
        operator_.callBoxed(stack);
      }
      if (logits.requires_grad() && at::GradMode::is_enabled()) {
        stack[0] = AttachLossGradient::apply(logits, stack[0].toTensor(), stack[1].toTensor());
      }
    } catch (const std::exception&) {
      return py::none();
    }
    stack.erase(stack.begin() + 1);
    py::tuple results(stack.size());
    for (size_t i = 0; i < stack.size(); ++i) {
      PyTuple_SET_ITEM(results.ptr(), static_cast<Py_ssize_t>(i), THPVariable_Wrap(stack[i].toTensor()));
    }
    return results;
  }

 private:
  bool read(const py::args& arguments, std::vector<c10::IValue>& stack) const {
    const auto& wanted = operator_.schema().arguments();
    if (arguments.size() != wanted.size()) return false;
    stack.reserve(wanted.size());
    for (size_t i = 0; i < wanted.size(); ++i) {
      PyObject* given = PyTuple_GET_ITEM(arguments.ptr(), static_cast<Py_ssize_t>(i));
      const c10::Type* type = wanted[i].type().get();
      const bool optional = type->kind() == c10::TypeKind::OptionalType;
      if (optional) type = type->containedType(0).get();
      const c10::TypeKind kind = type->kind();
      if (optional && (given == Py_None || is_default(wanted[i].name(), given))) {
        stack.emplace_back();
      } else if (kind == c10::TypeKind::TensorType) {
        const auto tensor = THPVariable_CheckExact(given) ? plain(THPVariable_Unpack(given))
                            : i > 0                       ? number(wanted[i].name(), given, stack[0].toTensor())
                                                          : std::nullopt;
        const auto* alias = wanted[i].alias_info();
        if (!tensor || (i == 0 && !is_served(*tensor)) || (alias && alias->isWrite() && !has_own_memory(*tensor))) {
          return false;
        }
        stack.emplace_back(*tensor);
      } else if (kind == c10::TypeKind::BoolType && PyBool_Check(given)) {
        stack.emplace_back(given == Py_True);
      } else if (kind == c10::TypeKind::StringType && PyUnicode_Check(given)) {
        stack.emplace_back(py::cast<std::string>(given));
      } else {
        return false;
      }
    }
    return true;
  }

  static std::optional<Tensor> plain(const Tensor& tensor) {
    return tensor.is_cpu() && !at::isTensorSubclassLike(tensor) ? std::optional(tensor) : std::nullopt;
  }

  // float16 takes its mean in the backward pass; forward mode needs a derivative of another kind.
  static bool is_served(const Tensor& logits) {
    return logits.scalar_type() != at::kHalf && !logits._fw_grad(0).defined();
  }

  // Of what is written to: `expand` makes a tensor that has several numbers in one place.
  static bool has_own_memory(const Tensor& tensor) {
    const auto strides = tensor.strides();
    return std::find(strides.begin(), strides.end(), 0) == strides.end();
  }

  // What an operator takes where it is given no temperature and no weight; this saves making a tensor.
  static bool is_default(const std::string& name, PyObject* given) {
    return PyFloat_CheckExact(given) && PyFloat_AS_DOUBLE(given) == (name == "temperature" ? 1.0 : 0.0);
  }

  // A temperature or a weight in the dtype of the loss; none for what is no number, and for one that is out of range.
  static std::optional<Tensor> number(const std::string& name, PyObject* given, const Tensor& logits) {
    if (!PyFloat_Check(given) && !PyLong_Check(given)) return std::nullopt;
    const double value = PyFloat_AsDouble(given);
    if (value == -1.0) PyErr_Clear();  // an integer that is too large, or -1: both are out of range
    const bool in_range = name == "temperature" ? value > 0.0 && std::isfinite(value) : value >= 0.0 && value <= 1.0;
    if (!in_range) return std::nullopt;
    const bool in_double = logits.scalar_type() == at::kDouble;
    const Tensor tensor = at::detail::empty_cpu({}, in_double ? at::kDouble : at::kFloat);
    if (in_double) {
      *tensor.mutable_data_ptr<double>() = value;
    } else {
      *tensor.mutable_data_ptr<float>() = static_cast<float>(value);
    }
    return tensor;
  }

  c10::OperatorHandle operator_;
};

}  // namespace
}  // namespace tfkd_fast

PYBIND11_MODULE(autograd, module) {
  module.doc() = "Losses on the processor in one call: the operator, and its gradient attached.";
  pybind11::class_<tfkd_fast::LossOperator>(module, "LossOperator")
      .def(pybind11::init<const std::string&>(), "By the name of the operator, tfkd_fast::NAME.")
      .def("__call__", &tfkd_fast::LossOperator::operator(),
           "Its results without the gradient, which is attached to the loss; None for a call that is not served.");
}
