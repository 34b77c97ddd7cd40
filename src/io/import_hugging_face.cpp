#include <algorithm>

#include "src/core/check.h"
#include "src/io/config_json.h"
#include "src/io/hugging_face.h"
#include "src/io/layout.h"

namespace irq {
namespace {

class HuggingFaceModel final : public ImportedModel {
 public:
  explicit HuggingFaceModel(const std::string& path) : folder_(path) {
    config_ = model_config_from_json(folder_.config_path());
    notes_ = folder_.notes();
    resolve_head(folder_, config_, notes_);
    std::set<std::string> known;
    const Layout layout = base_layout(config_, DType::F32, folder_.config_path());
    for (const TensorSpec& spec : layout.tensors()) {
      const std::string name = hugging_face_name(spec.name);
      const FolderTensor& t = folder_.require(name);
      check_shape(t, spec.rows, spec.cols);
      known.insert(name);
      const DType type = float_type(t);
      if (spec.rows > 1 || spec.name.find("norm") == std::string::npos) matrix_types_[type] += 1;
    }
    if (config_.tied) known.insert("lm_head.weight");  // the same values once more
    if (const int64_t ignored = folder_.refuse_unknown(known))
      notes_.push_back(strf("%ld rotary_emb.inv_freq buffers are left out: they follow from rope_theta", ignored));
    choose_dtype();
    if (const std::string note = eos_note(folder_.folder(), config_); !note.empty()) notes_.push_back(note);
  }

  Tensor tensor(const std::string& name) override {
    if (current_) current_->file->dont_need(*current_->entry);
    current_ = &folder_.require(hugging_face_name(name));
    released_ = 0;
    const DType type = float_type(*current_);
    const std::vector<int64_t>& shape = current_->entry->shape;
    const int64_t rows = shape.size() == 2 ? shape[0] : 1;
    const unsigned char* data = current_->data();
    if (reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(size_of(type))) {  // a header of an odd length
      aligned_.assign(data, data + current_->entry->bytes);
      data = aligned_.data();
      released_ = current_->entry->bytes;
    } else {
      std::vector<unsigned char>().swap(aligned_);
      current_->file->will_need(*current_->entry, 0, std::min(kAhead, current_->entry->bytes));
    }
    shown_name_ = current_->where();
    return make_view(const_cast<unsigned char*>(data), type, rows, shape.back(), shown_name_.c_str());
  }

  void advance(int64_t done) override {
    if (!current_ || done <= released_) return;
    const int64_t all = current_->entry->bytes, ahead = std::min(done + kAhead, all);
    current_->file->dont_need(*current_->entry, released_, done - released_);
    if (done < all) current_->file->will_need(*current_->entry, done, ahead - done);
    released_ = done;
  }

  std::vector<SideFile> side_files() override { return folder_side_files(folder_.folder()); }

 private:
  static constexpr int64_t kAhead = int64_t{32} << 20;  // bytes asked of the disk in advance

  void choose_dtype() {
    dtype_ = matrix_types_.size() == 1 ? matrix_types_.begin()->first : DType::F32;
    if (matrix_types_.size() == 1) return;
    std::string text = "the matrices' types mix (";
    for (const auto& [type, count] : matrix_types_)
      text += strf("%s%d %s", text.back() == '(' ? "" : ", ", count, name_of(type));
    notes_.push_back(text + "): f32 holds them all exactly");
  }

  FolderTensors folder_;
  std::map<DType, int> matrix_types_;
  const FolderTensor* current_ = nullptr;  // the last one asked for
  int64_t released_ = 0;                   // bytes of it that were given back
  std::vector<unsigned char> aligned_;
  std::string shown_name_;
};

}  // namespace

std::unique_ptr<ImportedModel> import_hugging_face(const std::string& path) {
  return std::make_unique<HuggingFaceModel>(path);
}

}  // namespace irq
