// Decide about images with a file made with "preprocess": "image", by onnxruntime.
//
//   g++ -O2 -std=c++17 onnxruntime.cpp -o decide -I ORT/include -L ORT/lib -lonnxruntime
//       $(pkg-config --cflags --libs opencv4)        Debian: libopencv-dev nlohmann-json3-dev zlib1g-dev; -lz
//   ./decide model.onnx IMAGE ...                    export.json lies beside the file
#include <onnxruntime_cxx_api.h>
#include <zlib.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>

int main(int count, char** words) {
    const std::filesystem::path file = words[1];
    const auto report = nlohmann::json::parse(std::ifstream(file.parent_path() / "export.json"));
    const auto& about = report["metadata"];
    std::ifstream stream(file, std::ios::binary);
    const std::vector<char> content(std::istreambuf_iterator<char>(stream), {});
    const auto checksum = crc32(0, reinterpret_cast<const Bytef*>(content.data()), content.size());
    if (checksum != report["files"][file.filename().string()]["crc32"].get<uLong>()) {
        std::fprintf(stderr, "%s is damaged, or not the file that export.json describes\n", words[1]);
        return 2;
    }
    if (!report["passed"].get<bool>() || about["preprocessed"] != "image") {
        std::fprintf(stderr, "%s was not proven, or not made with \"preprocess\": \"image\"\n", words[1]);
        return 2;
    }
    const auto classes = about["classes"].get<std::vector<std::string>>();
    Ort::Env environment;
    Ort::SessionOptions options;
    options.SetIntraOpNumThreads(1);
    Ort::Session session(environment, content.data(), content.size(), options);
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const char* inputs[] = {"input"};
    const char* outputs[] = {"output", "decision", "confidence"};
    for (int n = 2; n < count; ++n) {
        cv::Mat image = cv::imread(words[n], cv::IMREAD_COLOR);  // turned as its EXIF data says
        if (image.empty()) {
            std::fprintf(stderr, "%s cannot be read\n", words[n]);
            return 2;
        }
        cv::cvtColor(image, image, cv::COLOR_BGR2RGB);
        const std::vector<int64_t> shape{1, image.rows, image.cols, 3};
        auto input = Ort::Value::CreateTensor<uint8_t>(memory, image.data, image.total() * 3,
                                                       shape.data(), shape.size());
        auto results = session.Run(Ort::RunOptions{nullptr}, inputs, &input, 1, outputs, 3);
        const float* output = results[0].GetTensorData<float>();
        float largest = *std::max_element(output, output + classes.size());
        if (!about["softmax"].get<bool>()) {
            float sum = 0;
            for (size_t k = 0; k < classes.size(); ++k) sum += std::exp(output[k] - largest);
            largest = 1 / sum;
        }
        const int64_t decision = *results[1].GetTensorData<int64_t>();
        const char* name = decision < 0 ? "unsure" : classes[decision].c_str();
        std::printf("%s\t%s\t%.4f\t%.6f\n", words[n], name, *results[2].GetTensorData<float>(), largest);
    }
}
